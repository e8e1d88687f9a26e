"""Verification of an exported file: valid ONNX, the promised structure, and the values that JAX computes."""

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
"""Largest accepted difference of an output, relative to its largest absolute value. Sums of float32 in another order
differ by less than 1e-5; a wrong border or weight differs by more."""

BATCHES = (1, 7)
"""Batch sizes that are compared, of random inputs and of real ones. A single picture would hide a fixed batch size."""
_APART = 6
"""Difference of one symbolic size of the random inputs from the next; no two of them are equal."""
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

    The file must be valid with all shapes inferred, and have the promised structure, inputs and outputs. onnxruntime
    must compute the values of `fn` with its optimizations off and on, for batches of one and seven inputs. The batch is
    the first symbolic size; others are larger.

    Args:
      path: the file.
      fn: the function.
      inputs: types of its inputs, as for `to_onnx`.
      samples: real inputs to compare besides random ones, an array for each input.
      tolerances: for outputs that may differ by more than `TOLERANCE`, the largest accepted difference.

    Returns:
      The largest difference found, relative to the largest value of its output.

    Raises:
      VerificationError: a check failed. The message names the check, by how much it failed, and the first node whose
        value differs.
    """
    model = check_form(path, fn, inputs)
    feeds = list(_feeds(inputs, samples))
    try:
        return _check_values(path, fn, feeds, tolerances or {})
    except VerificationError as error:
        raise VerificationError(
            f"{error}{_describe_first_difference(model, fn, inputs, [feed for _, feed in feeds])}"
        ) from error


def check_form(path: Path, fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> onnx.ModelProto:
    """Checks what `verify` can check without running the file: validity, structure, inputs and outputs."""
    model = _load(path)
    _check_structure(model)
    _check_signature(model, fn, inputs)
    return model


def _describe_first_difference(
    model: onnx.ModelProto, fn: Callable[..., Any], inputs: Mapping[str, InputSpec], feeds: list[dict[str, np.ndarray]]
) -> str:
    """Returns what the message of a failed check adds: the first node whose value differs."""
    for feed in feeds:
        # A file may be too broken to run node by node. The failed check is still the error to report.
        try:
            found = first_difference(model, fn, inputs, feed, tolerance=TOLERANCE)
        except Exception as error:
            return f"; the first node that differs could not be found ({_first_line(error)})"
        if found is not None:
            return (
                f"; the first node that differs is {found.node}, by {found.difference:.3g} where the largest value "
                f"is {found.largest:.3g}"
            )
    return "; all nodes that can be compared are within the tolerance"


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
    except OSError:
        raise
    # Protobuf, the checker and shape inference raise exceptions without a common base.
    except Exception as error:
        raise VerificationError(f"the file is not valid ONNX: {_first_line(error)}") from error
    return model


def _check_structure(model: onnx.ModelProto) -> None:
    """Checks the promises about operators, versions and attributes that runtimes rely on."""
    ops = [node.op_type for node in model.graph.node]
    constants = {array.name for array in model.graph.initializer}
    # Products of two computed matrices, as in attention, need their operands in one order and so may need transposes.
    # Layer normalisation of maps has one before and one after it.
    attends = any(node.op_type == "MatMul" and not constants & set(node.input) for node in model.graph.node)
    allowed = 2 * ops.count("Sqrt")
    # The gradient of a heatmap may be broadcast in another order than that of its map.
    transposes = sum(node.op_type == "Transpose" and not node.name.startswith("heatmap/") for node in model.graph.node)
    versions = [(opset.domain, opset.version) for opset in model.opset_import]
    facts = {
        f"IR version {model.ir_version}, not {IR_VERSION}": model.ir_version != IR_VERSION,
        f"operator sets {versions}, not {OPSET} alone": versions != [("", OPSET)],
        "a BatchNormalization": "BatchNormalization" in ops,
        f"{transposes} Transposes, more than one": transposes > 1 + allowed and not attends,
        "value_info, which runtimes trust over their own inference": len(model.graph.value_info) > 0,
    }
    for node in model.graph.node:
        attributes = {attribute.name for attribute in node.attribute}
        facts[f"auto_pad at {node.name}"] = "auto_pad" in attributes
        windowed = node.op_type in ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
        facts[f"implicit pads or kernel_shape at {node.name}"] = windowed and not {"pads", "kernel_shape"} <= attributes
    for fact, found in facts.items():
        if found:
            raise VerificationError(f"the file has {fact}")


def _check_signature(model: onnx.ModelProto, fn: Callable[..., Any], inputs: Mapping[str, InputSpec]) -> None:
    """Checks names, element types and shapes of the inputs and outputs, symbolic sizes included."""
    types = input_types(inputs)
    outputs = name_outputs(jax.eval_shape(fn, *abstract(types)))
    for what, found, expected in (
        ("inputs", model.graph.input, types),
        ("outputs", model.graph.output, outputs),
    ):
        signature = {value.name: _read_type(value) for value in found}
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
    """Yields the inputs to compare with, each with a description."""
    random = np.random.default_rng(0)
    for size in BATCHES:
        sizes, feed = _sizes(inputs, size), {}
        for name, (dtype, dims) in inputs.items():
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in dims]
            kind = np.dtype(dtype).kind
            # Nearly all bytes are true.
            noise = random.normal(size=shape) if kind == "f" else random.integers(0, 2 if kind == "b" else 256, shape)
            feed[name] = noise.astype(dtype)
        yield f"a batch of {size} random inputs", feed
        if samples is not None:
            yield f"a batch of {size} real inputs", {name: samples[name][:size] for name in inputs}


def _sizes(inputs: Mapping[str, InputSpec], batch: int) -> dict[str, int]:
    """Returns a number for each symbolic size, the batch for the first; equal ones would hide that two are mixed up."""
    names = dict.fromkeys(dim for _, dims in inputs.values() for dim in dims if isinstance(dim, str))
    return {name: batch + _APART * number for number, name in enumerate(names)}


def _check_values(
    path: Path, fn: Callable[..., Any], feeds: list[tuple[str, dict[str, np.ndarray]]], tolerances: Mapping[str, float]
) -> float:
    """Checks the values of all outputs; returns the largest relative difference."""
    # Accelerators would multiply in bfloat16 by default.
    with jax.default_matmul_precision("highest"):
        reference = jax.jit(lambda *arrays: name_outputs(fn(*arrays)))
        expected = [jax.device_get(reference(*feed.values())) for _, feed in feeds]

    largest = 0.0
    for level, optimization in _LEVELS.items():
        session = _open(path, optimization, level)
        names = [output.name for output in session.get_outputs()]
        for (what, feed), wanted in zip(feeds, expected, strict=True):
            where = f"{what} in onnxruntime with optimizations {level}"
            try:
                results = session.run(None, feed)
            # onnxruntime's exceptions have no common base.
            except Exception as error:
                raise VerificationError(f"{where} failed: {_first_line(error)}") from error
            for name, found in zip(names, results, strict=True):
                tolerance = tolerances.get(name, TOLERANCE)
                largest = max(largest, _check_close(f"{name} of {where}", found, wanted[name], tolerance))
    return largest


def _open(path: Path, optimization: Any, level: str) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = optimization
    options.intra_op_num_threads = 1  # One thread adds in the same order on every machine.
    options.log_severity_level = 3  # Warnings are off; errors are raised as well.
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"onnxruntime with optimizations {level} refuses it: {_first_line(error)}") from error


def _check_close(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Checks one output; returns its largest difference relative to its largest value."""
    if found.shape != expected.shape or found.dtype != exported_dtype(expected.dtype):
        raise VerificationError(f"{what}: {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}")
    if not (np.all(np.isfinite(found)) and np.all(np.isfinite(expected))):
        raise VerificationError(f"{what}: not finite, in the file or in the function itself; check the weights")
    if found.size == 0:
        return 0.0
    # Floats may differ by the tolerance, integers and booleans not at all.
    difference = float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))
    largest = float(np.max(np.abs(expected.astype(np.float64))))
    allowed = tolerance * largest if found.dtype.kind == "f" else 0.0
    if difference > allowed:
        raise VerificationError(f"{what}: differs by {difference:.3g}, more than {allowed:.3g}")
    if found.dtype.kind == "f" and found.ndim == 2 and found.shape[1] > 1:
        _check_top1(what, found, expected, allowed)
    return difference / largest if largest else 0.0


def _check_top1(what: str, found: np.ndarray, expected: np.ndarray, allowed: float) -> None:
    """Checks that the top classes agree, where the two largest reference values differ by more than the tolerance."""
    second, first = np.sort(expected, axis=1)[:, -2:].T
    changed = (found.argmax(axis=1) != expected.argmax(axis=1)) & (first - second > allowed)
    if np.any(changed):
        raise VerificationError(f"{what}: another top class in {changed.sum()} of {len(found)} rows")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
