"""Checks that an exported file is what it should be, before anyone can take it for such."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from export.converter import InputSpec, abstract, input_types, name_outputs
from export.errors import VerificationError
from export.first_difference import first_difference
from export.graph import IR_VERSION, OPSET, exported_dtype

TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest absolute value: float32 sums in another order stay
within 1e-5, a wrong border or weight does not."""

BATCHES = (1, 7)
"""How many inputs are compared at a time: those many random ones, and the first of the real ones."""
_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def verify(
    path: Path,
    fn: Callable[..., Any],
    inputs: Mapping[str, InputSpec],
    *,
    samples: Mapping[str, np.ndarray] | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> float:
    """Checks a file that `to_onnx(fn, inputs)` was written to.

    It must be valid with all shapes inferred, of the promised structure, inputs and outputs, and onnxruntime must
    give what `fn` gives, with its optimizations off and on, for one and for seven random inputs.

    Args:
      path: the file.
      fn: the function it came from.
      inputs: their types, as for `to_onnx`.
      samples: real inputs to compare too.
      tolerances: of outputs that may differ by more than `TOLERANCE`.

    Returns:
      The largest difference found, relative to the largest value of its output.

    Raises:
      VerificationError: naming the check that failed, by how much, and the node that first differs.
    """
    model = check_form(path, fn, inputs)
    feeds = list(_feeds(inputs, samples))
    try:
        return _check_numbers(path, fn, feeds, tolerances or {})
    except VerificationError as error:
        raise VerificationError(f"{error}{_locate(model, fn, inputs, [feed for _, feed in feeds])}") from error


def check_form(path: Path, fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> onnx.ModelProto:
    """The part of `verify` that computes nothing: validity, structure, inputs and outputs."""
    model = _load(path)
    _check_structure(model)
    _check_signature(model, fn, inputs)
    return model


def _locate(
    model: onnx.ModelProto, fn: Callable[..., Any], inputs: Mapping[str, InputSpec], feeds: list[dict[str, np.ndarray]]
) -> str:
    """What the message of a failed check adds: where the first difference is."""
    for feed in feeds:
        try:
            found = first_difference(model, fn, inputs, feed, tolerance=TOLERANCE)
        except Exception as error:  # a file that cannot even be run step by step; its own failure is told already
            return f"; the first node that differs cannot be told ({_first_line(error)})"
        if found is not None:
            return (
                f"; the first node that differs is {found.node}, by {found.difference:.3g} where the largest value "
                f"is {found.largest:.3g}"
            )
    return "; every node that can be compared agrees by itself"


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf, checker and shape inference each have their own
        raise VerificationError(f"the file is not valid ONNX: {_first_line(error)}") from error
    return model


def _check_structure(model: onnx.ModelProto) -> None:
    ops = [node.op_type for node in model.graph.node]
    constants = {each.name for each in model.graph.initializer}
    attends = any(node.op_type == "MatMul" and not constants & set(node.input) for node in model.graph.node)
    versions = [(each.domain, each.version) for each in model.opset_import]
    facts = {
        f"IR version {model.ir_version}, not {IR_VERSION}": model.ir_version != IR_VERSION,
        f"operator sets {versions}, not {OPSET} alone": versions != [("", OPSET)],
        "a BatchNormalization": "BatchNormalization" in ops,
        # Products of computed matrices, as in attention, need their operands in one order.
        f"{ops.count('Transpose')} Transposes, more than one": ops.count("Transpose") > 1 and not attends,
        "value_info, which runtimes trust over their own inference": len(model.graph.value_info) > 0,
    }
    for node in model.graph.node:
        attributes = {each.name for each in node.attribute}
        facts[f"auto_pad at {node.name}"] = "auto_pad" in attributes
        windowed = node.op_type in ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
        facts[f"implicit pads or kernel_shape at {node.name}"] = windowed and not {"pads", "kernel_shape"} <= attributes
    for fact, found in facts.items():
        if found:
            raise VerificationError(f"the file has {fact}")


def _check_signature(model: onnx.ModelProto, fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> None:
    types = input_types(inputs)
    outputs = name_outputs(jax.eval_shape(fn, *abstract(types)))
    for what, found, expected in (
        ("inputs", model.graph.input, types),
        ("outputs", model.graph.output, outputs),
    ):
        signature = {each.name: _read_type(each) for each in found}
        wanted = {name: (exported_dtype(kind.dtype), tuple(map(str, kind.shape))) for name, kind in expected.items()}
        if signature != wanted:
            raise VerificationError(f"the file has the {what} {signature}, not {wanted}")


def _read_type(value: onnx.ValueInfoProto) -> tuple[Any, tuple[str, ...]]:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
    return helper.tensor_dtype_to_np_dtype(kind.elem_type), shape


def _feeds(
    inputs: Mapping[str, InputSpec], samples: Mapping[str, np.ndarray] | None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """What to run, each with a description."""
    random = np.random.default_rng(0)
    for size in BATCHES:
        feed = {}
        for name, (dtype, dims) in inputs.items():
            shape = [size if isinstance(dim, str) else dim for dim in dims]
            noise = random.normal(size=shape) if np.dtype(dtype).kind == "f" else random.integers(0, 256, shape)
            feed[name] = noise.astype(dtype)
        yield f"a batch of {size} random inputs", feed
        if samples is not None:
            yield f"a batch of {size} real inputs", {name: array[:size] for name, array in samples.items()}


def _check_numbers(
    path: Path, fn: Callable[..., Any], feeds: list[tuple[str, dict[str, np.ndarray]]], tolerances: Mapping[str, float]
) -> float:
    largest = 0.0
    with jax.default_matmul_precision("highest"):  # accelerators would round to bfloat16 otherwise
        reference = jax.jit(lambda *arrays: name_outputs(fn(*arrays)))
        expected = [jax.device_get(reference(*feed.values())) for _, feed in feeds]
    for level, optimization in _LEVELS.items():
        session = _open(path, optimization, level)
        names = [each.name for each in session.get_outputs()]
        for (what, feed), wanted in zip(feeds, expected, strict=True):
            where = f"{what} in onnxruntime with optimizations {level}"
            try:
                results = session.run(None, feed)
            except Exception as error:  # its exceptions have no common base of their own
                raise VerificationError(f"{where} failed: {_first_line(error)}") from error
            for name, found in zip(names, results, strict=True):
                tolerance = tolerances.get(name, TOLERANCE)
                largest = max(largest, _compare(f"{name} of {where}", found, wanted[name], tolerance))
    return largest


def _open(path: Path, optimization: Any, level: str) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = optimization
    options.intra_op_num_threads = 1  # sums in the same order on every machine
    options.log_severity_level = 3  # errors only; they are raised too
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"onnxruntime with optimizations {level} refuses it: {_first_line(error)}") from error


def _compare(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """The relative difference, if it is within the tolerance."""
    if found.shape != expected.shape or found.dtype != exported_dtype(expected.dtype):
        raise VerificationError(f"{what}: {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}")
    if not (np.all(np.isfinite(found)) and np.all(np.isfinite(expected))):
        raise VerificationError(f"{what}: not finite, or not in the function itself; check the weights")
    if found.size == 0:
        return 0.0
    difference = float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))
    largest = float(np.max(np.abs(expected.astype(np.float64))))
    allowed = tolerance * largest if found.dtype.kind == "f" else 0.0
    if difference > allowed:
        raise VerificationError(f"{what}: differs by {difference:.3g}, more than {allowed:.3g}")
    if found.dtype.kind == "f" and found.ndim == 2 and found.shape[1] > 1:
        _compare_top1(what, found, expected, allowed)
    return difference / largest if largest else 0.0


def _compare_top1(what: str, found: np.ndarray, expected: np.ndarray, allowed: float) -> None:
    """The same class, where the reference itself is surer of it than the tolerance."""
    second, first = np.sort(expected, axis=1)[:, -2:].T
    changed = (found.argmax(axis=1) != expected.argmax(axis=1)) & (first - second > allowed)
    if np.any(changed):
        raise VerificationError(f"{what}: another top class in {changed.sum()} of {len(found)} rows")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
