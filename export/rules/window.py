"""Convolution and pooling.

Pads and kernel shapes are always explicit, which all runtimes read alike.
"""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.expression import Expression, from_ordered, limits, ordered
from export.rules.elementwise import scale
from export.rules.registry import require, rule
from export.rules.shape import filled, pad_with, slice_tensor

_MOST_POSITIONS = 256
"""Largest window that is unrolled into slices; larger ones would make graphs that take a runtime minutes to load."""


@rule("conv_general_dilated")
def convolution(builder: Builder, eqn: Any, image: Value, kernel: Value) -> Value:
    """Adds Conv, or ConvTranspose if the equation is one, along any number of axes.

    ONNX has batch and channels first, and the kernel as [outputs, inputs, *window]. Layouts provide both orders.
    """
    params = eqn.params
    _check_convolution(builder, eqn, image, kernel)
    # The window sees padding alone, or no channel at all.
    if 0 in image.shape:
        return filled(builder, eqn.outvars[0].aval, 0)

    # JAX writes a transposed convolution as one whose input is dilated (`lhs_dilation`).
    if isinstance(kernel, np.ndarray) and _is_transposed(params, kernel):
        return _transposed_convolution(builder, eqn, image, kernel)

    # Conv neither dilates its input nor crops it: that is done before.
    spec, padding = params["dimension_numbers"], params["padding"]
    gaps = [dilation - 1 for dilation in params["lhs_dilation"]]
    if any(gaps) or any(pad < 0 for pair in padding for pad in pair):
        config = dict(zip(spec.lhs_spec[2:], zip(*zip(*padding, strict=True), gaps, strict=True), strict=True))
        zero = np.zeros((), np.float32)
        image = pad_with(
            builder, builder.as_tensor(image), zero, [config.get(axis, (0, 0, 0)) for axis in range(len(image.shape))]
        )
        padding = [(0, 0)] * len(padding)

    lows, highs = zip(*padding, strict=True) if padding else ((), ())
    return builder.emit(
        "Conv",
        [builder.in_layout(image, spec.lhs_spec), builder.in_layout(kernel, spec.rhs_spec, "kernel")],
        eqn.outvars[0].aval,
        spec.out_spec,
        kernel_shape=[kernel.shape[axis] for axis in spec.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        pads=[*lows, *highs],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )


def _check_convolution(builder: Builder, eqn: Any, image: Value, kernel: Value) -> None:
    """Refuses variants that ONNX's operators do not have."""
    params = eqn.params
    require(params["batch_group_count"] == 1, builder, eqn, "batch groups")
    require(len(params["window_strides"]) > 0, builder, eqn, "no axis to slide along")
    static = all(isinstance(pad, int | np.integer) for pair in params["padding"] for pad in pair)
    require(static, builder, eqn, "symbolic padding")
    require(isinstance(params["feature_group_count"], int), builder, eqn, "a symbolic number of groups")
    window = [kernel.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    require(all(isinstance(size, int) for size in window), builder, eqn, "a symbolic window")
    require(image.dtype == kernel.dtype == np.float32, builder, eqn, f"{image.dtype} operands")


def _is_transposed(params: Any, kernel: np.ndarray) -> bool:
    """Returns whether a convolution is a ConvTranspose: dilated input, no strides, pads smaller than the window."""
    if set(params["window_strides"]) != {1} or set(params["lhs_dilation"]) == {1}:
        return False
    return all(pad >= 0 for pad in _transposed_pads(params, kernel))


def _transposed_pads(params: Any, kernel: np.ndarray) -> list[int]:
    """Returns the pads of ConvTranspose, which count what is cropped from the full result."""
    sizes = [kernel.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    reach = [gap * (size - 1) for gap, size in zip(params["rhs_dilation"], sizes, strict=True)]
    lows, highs = zip(*params["padding"], strict=True)
    return [size - pad for pads in (lows, highs) for size, pad in zip(reach, pads, strict=True)]


def _transposed_convolution(builder: Builder, eqn: Any, image: Value, kernel: np.ndarray) -> Tensor:
    """Adds ConvTranspose, whose kernel is flipped and has inputs before outputs."""
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    # From [groups * outputs, inputs, *window] to [groups * inputs, outputs, *window].
    groups = params["feature_group_count"]
    weights = np.flip(kernel.transpose(spec.rhs_spec), tuple(range(2, kernel.ndim)))
    outputs, inputs, *window = weights.shape
    grouped = weights.reshape(groups, outputs // groups, inputs, *window).swapaxes(1, 2)
    weights = grouped.reshape(groups * inputs, outputs // groups, *window)
    return builder.emit(
        "ConvTranspose",
        [builder.in_layout(image, spec.lhs_spec), builder.constant(weights, "kernel")],
        eqn.outvars[0].aval,
        spec.out_spec,
        kernel_shape=window,
        strides=list(params["lhs_dilation"]),
        pads=_transposed_pads(params, kernel),
        dilations=list(params["rhs_dilation"]),
        group=groups,
    )


@rule("reduce_window_max")
def max_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds MaxPool, which pads with minus infinity as JAX does, or slices if MaxPool cannot express the window."""
    params = eqn.params
    columns = zip(params["padding"], params["window_dimensions"], params["window_dilation"], strict=True)
    # onnxruntime accepts pads from 0 up to less than the window only, and has no minus infinity for a window that sees
    # nothing else, as one with gaps may.
    is_padding = all(0 <= pad < (size if step == 1 else 1) for pads, size, step in columns for pad in pads)
    if not is_padding or not _is_pool(eqn, value):
        lowest, _ = limits(value.dtype)
        return _slide(builder, eqn, value, _operator("max", value.dtype), np.asarray(lowest, value.dtype))
    value, eqn, shape = _with_still_axes(builder, eqn, value)
    axes = _window_axes(eqn)
    lows, highs = zip(*(eqn.params["padding"][axis] for axis in axes), strict=True)
    return builder.reshape(
        _pool(builder, eqn, value, "MaxPool", axes, pads=[*lows, *highs], **_sizes(eqn, axes)), shape
    )


@rule("reduce_window_min")
def min_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Computes the negated MaxPool of the negated values: ONNX has no MinPool."""
    if value.dtype != np.float32:
        _, highest = limits(value.dtype)
        return _slide(builder, eqn, value, _operator("min", value.dtype), np.asarray(highest, value.dtype))
    negative = builder.emit("Neg", [value.name], value, value.layout)
    pooled = max_pool(builder, eqn, negative)
    return builder.emit("Neg", [pooled.name], pooled, pooled.layout)


@rule("reduce_window_sum")
def sum_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """Adds AveragePool times the size of the window, after a Pad with zeros.

    Padding by AveragePool itself is avoided: OpenCV 4.10 misreads `count_include_pad`.
    """
    if not _is_pool(eqn, value) or set(eqn.params["window_dilation"]) != {1}:
        return _slide(builder, eqn, value, "Add", np.zeros((), value.dtype))
    padding = [(low, high, 0) for low, high in eqn.params["padding"]]
    value = pad_with(builder, value, np.zeros((), np.float32), padding)
    # AveragePool has no dilations before operator set 19.
    value, eqn, shape = _with_still_axes(builder, eqn, value)
    axes = _window_axes(eqn)
    sizes = _sizes(eqn, axes)
    del sizes["dilations"]
    pooled = _pool(builder, eqn, value, "AveragePool", axes, pads=[0, 0] * len(axes), **sizes)
    return builder.reshape(scale(builder, pooled, math.prod(sizes["kernel_shape"])), shape)


_COMBINE = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min", "and": "And", "or": "Or"}
_NEUTRAL = {"Add": 0, "Mul": 1}
"""What changes no result; other operators may take the initial value again."""


def _operator(primitive: str, dtype: np.dtype[Any]) -> str:
    """Returns the ONNX operator of a primitive; Max and Min take no booleans."""
    logic = {"max": "Or", "min": "And"} if dtype == np.bool_ else {}
    return logic.get(primitive, _COMBINE[primitive])


@rule("reduce_window")
def general_pool(builder: Builder, eqn: Any, value: Tensor, start: Value) -> Tensor:
    """Slides a window whose reducer is one binary operator and whose initial value is constant."""
    inner = eqn.params["jaxpr"]
    steps = [step.primitive.name for step in getattr(inner, "jaxpr", inner).eqns]
    require(len(steps) == 1 and steps[0] in _COMBINE, builder, eqn, f"the function {', '.join(steps)}")
    bitwise = steps[0] in ("and", "or") and value.dtype != np.bool_
    require(not bitwise, builder, eqn, f"the bits of {value.dtype}")
    require(isinstance(start, np.ndarray), builder, eqn, "a computed initial value")
    assert isinstance(start, np.ndarray)
    op = _operator(steps[0], value.dtype)
    # XLA skips the padding: a start of 1 counts once in a sum, however many positions are outside.
    padding = np.asarray(_NEUTRAL.get(op, start), start.dtype)
    result = Expression(builder, _slide(builder, eqn, value, op, padding))
    if op in ("Max", "Min"):
        return from_ordered(ordered(result).apply(op, ordered(Expression(builder, start))), value.dtype).tensor
    return result.widen().apply(op, start).cast(value.dtype).tensor


def _slide(builder: Builder, eqn: Any, value: Tensor, op: str, start: np.ndarray) -> Tensor:
    """Combines one slice of the padded value for each position in the window; `start` is the padding."""
    if op in ("Max", "Min") and value.dtype == np.uint32:
        lowest = np.asarray(ordered(Expression(builder, start)).value)
        found = _slide(builder, eqn, ordered(Expression(builder, value)).tensor, op, lowest)
        return from_ordered(Expression(builder, found), value.dtype).tensor
    params = eqn.params
    sizes = params["window_dimensions"]
    require(math.prod(sizes) <= _MOST_POSITIONS, builder, eqn, f"a window of more than {_MOST_POSITIONS} positions")
    gaps = [dilation - 1 for dilation in params["base_dilation"]]
    config = [(*pads, gap) for pads, gap in zip(params["padding"], gaps, strict=True)]
    padded = pad_with(builder, value, start, config)

    # Each position of the window sees a strided slice of the padded value.
    result = None
    for offsets in itertools.product(*map(range, sizes)):
        starts = [i * gap for i, gap in zip(offsets, params["window_dilation"], strict=True)]
        reach = [
            (dim - 1) * step + 1 for dim, step in zip(eqn.outvars[0].aval.shape, params["window_strides"], strict=True)
        ]
        limits = [begin + extent for begin, extent in zip(starts, reach, strict=True)]
        seen = Expression(builder, slice_tensor(builder, padded, starts, limits, params["window_strides"])).widen()
        result = seen if result is None else result.apply(op, seen)
    assert result is not None
    return result.cast(value.dtype).tensor


def _is_pool(eqn: Any, value: Tensor) -> bool:
    """Returns whether this is ONNX's pooling: floats, no dilated input, one to three axes of known size, none empty."""
    moving = _window_axes(eqn)
    plain = value.dtype == np.float32 and set(eqn.params["base_dilation"]) == {1}
    known = all(isinstance(value.shape[axis], int) and value.shape[axis] > 0 for axis in moving)
    return plain and 1 <= len(moving) <= 3 and known


def _window_axes(eqn: Any) -> list[int]:
    """Returns the axes that the window moves along, all but two: ONNX pools after a batch axis and a channel axis."""
    params = eqn.params
    columns = zip(params["window_dimensions"], params["window_strides"], params["padding"], strict=True)
    # Axes with a window of 1 may be pooled too; the first and the last of them become batch and channels.
    still = [i for i, (size, stride, pads) in enumerate(columns) if (size, stride, *pads) == (1, 1, 0, 0)]
    rank = len(params["window_dimensions"])
    if len(still) <= 2:
        return [axis for axis in range(rank) if axis not in still]
    return [axis for axis in range(rank) if axis not in (still[0], still[-1])]


def _with_still_axes(builder: Builder, eqn: Any, value: Tensor) -> tuple[Tensor, Any, Any]:
    """Adds axes of size 1 in front until two axes are not pooled.

    Returns:
      The tensor, an equation that pools it, and the shape of the result without the added axes.
    """
    params, shape = dict(eqn.params), tuple(eqn.outvars[0].aval.shape)
    missing = max(0, 2 - (len(shape) - len(_window_axes(eqn))))
    for name, still in (("window_dimensions", 1), ("window_strides", 1), ("window_dilation", 1), ("padding", (0, 0))):
        params[name] = (*[still] * missing, *params[name])
    aval = SimpleNamespace(shape=(*[1] * missing, *shape), dtype=eqn.outvars[0].aval.dtype)
    raised = SimpleNamespace(params=params, outvars=[SimpleNamespace(aval=aval)], primitive=eqn.primitive)
    return builder.reshape(value, (*[1] * missing, *value.shape)), raised, shape


def _sizes(eqn: Any, axes: Any) -> dict[str, list[int]]:
    """Returns the attributes of an ONNX pooling operator along these axes."""
    names = {"kernel_shape": "window_dimensions", "strides": "window_strides", "dilations": "window_dilation"}
    return {name: [eqn.params[key][axis] for axis in axes] for name, key in names.items()}


def _pool(builder: Builder, eqn: Any, value: Tensor, op: str, axes: list[int], **attributes: Any) -> Tensor:
    layout = (*(axis for axis in range(len(value.shape)) if axis not in axes), *axes)
    return builder.emit(op, [builder.in_layout(value, layout)], eqn.outvars[0].aval, layout, **attributes)
