"""Convolution and pooling: what slides a window over axes. Pads are always explicit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from export.builder import Builder, Tensor, Value
from export.rules.elementwise import scale
from export.rules.registry import require, rule


@rule("conv_general_dilated")
def convolution(builder: Builder, eqn: Any, image: Value, kernel: Value) -> Tensor:
    """Conv of any number of axes; ONNX wants batch and channels first, the kernel as output, input, window."""
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    require(params["batch_group_count"] == 1, builder, eqn, "batch groups")
    require(all(each == 1 for each in params["lhs_dilation"]), builder, eqn, "a dilated input (transposed convolution)")
    require(all(each >= 0 for pair in params["padding"] for each in pair), builder, eqn, "negative padding")
    lows, highs = zip(*params["padding"], strict=True)
    return builder.emit(
        "Conv",
        [builder.stored(image, spec.lhs_spec), builder.stored(kernel, spec.rhs_spec, "kernel")],
        eqn.outvars[0].aval,
        spec.out_spec,
        kernel_shape=[kernel.shape[axis] for axis in spec.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        pads=[*lows, *highs],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )


@rule("reduce_window_max")
def max_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """MaxPool; both pad with minus infinity."""
    axes = _window_axes(builder, eqn, value)
    lows, highs = zip(*(eqn.params["padding"][axis] for axis in axes), strict=True)
    sizes = _sizes(eqn, axes)
    reach = [1 + (size - 1) * gap for size, gap in zip(sizes["kernel_shape"], sizes["dilations"], strict=True)]
    fits = all(pad < each for pads in (lows, highs) for pad, each in zip(pads, reach, strict=True))
    require(fits, builder, eqn, "windows that see padding only")
    return _pool(builder, eqn, value, "MaxPool", axes, pads=[*lows, *highs], **sizes)


@rule("reduce_window_min")
def min_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """The maximum of the negative."""
    negative = builder.emit("Neg", [value.name], value, value.layout)
    pooled = max_pool(builder, eqn, negative)
    return builder.emit("Neg", [pooled.name], pooled, pooled.layout)


@rule("reduce_window_sum")
def sum_pool(builder: Builder, eqn: Any, value: Tensor) -> Tensor:
    """AveragePool times the window's size. Zeros are padded apart: some runtimes misread `count_include_pad`."""
    axes = _window_axes(builder, eqn, value)
    sizes = _sizes(eqn, axes)
    require(all(each == 1 for each in sizes.pop("dilations")), builder, eqn, "a dilated window")
    padding = eqn.params["padding"]
    if any(each for pair in padding for each in pair):
        value = _pad_with_zeros(builder, value, padding, _channels_first(value, axes))
    pooled = _pool(builder, eqn, value, "AveragePool", axes, pads=[0, 0] * len(axes), **sizes)
    return scale(builder, pooled, math.prod(sizes["kernel_shape"]))


def _window_axes(builder: Builder, eqn: Any, value: Tensor) -> list[int]:
    """The axes that the window moves along; ONNX wants two others before them."""
    params = eqn.params
    require(value.dtype == np.float32, builder, eqn, f"{value.dtype} operands")
    require(all(each == 1 for each in params["base_dilation"]), builder, eqn, "a dilated input")
    still = [
        axis
        for axis, (size, stride, pads) in enumerate(
            zip(params["window_dimensions"], params["window_strides"], params["padding"], strict=True)
        )
        if size == 1 and stride == 1 and tuple(pads) == (0, 0)
    ]
    require(len(still) >= 2, builder, eqn, "windows along all axes but one")
    require(len(value.shape) > 2, builder, eqn, "two axes")
    return [axis for axis in range(len(value.shape)) if axis not in (still[0], still[-1])]


def _sizes(eqn: Any, axes: list[int]) -> dict[str, list[int]]:
    names = {"kernel_shape": "window_dimensions", "strides": "window_strides", "dilations": "window_dilation"}
    return {name: [eqn.params[key][axis] for axis in axes] for name, key in names.items()}


def _channels_first(value: Tensor, axes: list[int]) -> tuple[int, ...]:
    return (*(axis for axis in range(len(value.shape)) if axis not in axes), *axes)


def _pool(builder: Builder, eqn: Any, value: Tensor, op: str, axes: list[int], **attributes: Any) -> Tensor:
    layout = _channels_first(value, axes)
    return builder.emit(op, [builder.stored(value, layout)], eqn.outvars[0].aval, layout, **attributes)


def _pad_with_zeros(builder: Builder, value: Tensor, padding: Any, layout: tuple[int, ...]) -> Tensor:
    sizes = [padding[axis][0] for axis in layout] + [padding[axis][1] for axis in layout]
    shape = tuple(dim + sum(pads) for dim, pads in zip(value.shape, padding, strict=True))
    zero = builder.constant(np.zeros((), np.float32), "zero")
    inputs = [builder.stored(value, layout), builder.constant(np.array(sizes, np.int64), "pads"), zero]
    return builder.emit("Pad", inputs, replace(value, shape=shape), layout)
