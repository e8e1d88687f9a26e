"""Static quantization to 8-bit integers, calibrated on training pictures, and the speed that it brings."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.errors import VerificationError
from export.graph import IR_VERSION
from export.hard_swish import add_in_integers, bound_below, other_products
from export.padding import pad_depthwise
from export.rounding import round_convolutions

CALIBRATION_PICTURES = 512
_BATCH = 32
_ROUNDING_BATCH = 8
"""The inputs of all layers are in memory at the same time."""
# Rounds of the speed comparison.
_ROUNDS = 5
# ReLU and Clip become part of the range of what they read, and vanish.
_QUANTIZED = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "LeakyRelu",
    "Relu",
    "Clip",
)
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Speed:
    """Speed of a model on one thread.

    Attributes:
      latency: milliseconds for one picture.
      throughput: pictures per second in batches of 64.
    """

    latency: float
    throughput: float


def quantize(source: Path, target: Path, pictures: Any) -> None:
    """Writes a statically quantized model (QDQ): weights in int8 per channel, activations in uint8.

    Weights use 7 bits, from -64 to 64. x86 processors without VNNI instructions add two products in 16 bits, which
    overflow silently with 8-bit weights; 7 bits give the same results on every processor. Depthwise convolutions, whose
    products onnxruntime adds in 32 bits, use 8. How the weights of convolutions are rounded depends on the pictures,
    see `round_convolutions`. The nodes up to the first layer and from the last layer on stay in float.

    Args:
      source: a model of `to_onnx` with the input `image` and the output `logits`.
      target: the file to write.
      pictures: uint8 [n, side, side, 3], from the training data; up to `CALIBRATION_PICTURES` are used.
    """
    model = onnx.load(source)
    kept = kept_in_float(model)
    bound_below(model, kept)
    kept += other_products(model)
    pad_depthwise(model, [node.name for node in model.graph.node if node.name not in kept])
    scales = round_convolutions(
        model, [node.name for node in model.graph.node if node.name not in kept], _batches(pictures, _ROUNDING_BATCH)
    )
    with _quiet():
        quantize_static(
            model,
            target,
            _Pictures(pictures),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=kept,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "TensorQuantOverrides": scales},
        )

    quantized = onnx.load(target)
    add_in_integers(quantized)
    # Restore what the quantizer changes. Runtimes trust value_info over their own shape inference.
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    quantized.ir_version = IR_VERSION
    onnx.save(quantized, target)


def check_valid(path: Path) -> None:
    """Checks that a quantized file is valid ONNX.

    Raises:
      VerificationError: the file is invalid.
    """
    try:
        onnx.checker.check_model(onnx.load(path), full_check=True)
    # Protobuf, the checker and shape inference raise exceptions without a common base.
    except Exception as error:
        raise VerificationError(f"the quantized file is not valid ONNX: {error}".partition("\n")[0]) from error


def kept_in_float(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the nodes that are not quantized.

    These are the nodes up to the first layer with weights and its hard swish, those from the logits' last layer on, and
    the nodes of the heatmap.
    """
    nodes = list(model.graph.node)
    # Up to the first layer. Matrix products before the first convolution resize the picture.
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    layers = convolutions or [node for node in nodes if node.op_type in _WEIGHTED]
    end = nodes.index(layers[0]) + 1 if layers else len(nodes)
    # onnxruntime computes the hard swish of a layer in float together with the layer.
    first = set(nodes[end - 1].output)
    for node in nodes[end : end + 2]:
        if node.op_type in ("HardSigmoid", "Mul") and first >= set(node.input):
            first |= set(node.output)
            end += 1

    # From the layer that computes the logits on, and everything that reads it.
    producers = {name: node for node in nodes for name in node.output}
    last = producers["logits"]
    while last.op_type not in _WEIGHTED and last.input and last.input[0] in producers:
        last = producers[last.input[0]]
    below = {last.output[0]}
    kept = [node.name for node in nodes[:end]] + [last.name]
    for node in nodes:
        if below & set(node.input):
            below |= set(node.output)
            kept.append(node.name)
    return kept + [node.name for node in nodes if node.name.startswith("heatmap/")]


def compare_speed(paths: list[Path], side: int) -> list[Speed]:
    """Measures files in turns, so that other load on the machine affects all alike, and returns the best round of each.

    Args:
      paths: the files.
      side: height and width of their pictures.
    """
    sessions = [_open(path) for path in paths]
    images = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    best = [[np.inf, np.inf] for _ in paths]
    for _ in range(_ROUNDS):
        for session, times in zip(sessions, best, strict=True):
            times[0] = min(times[0], _time(session, images[:1], 20))
            times[1] = min(times[1], _time(session, images, 1))
    return [Speed(latency=1e3 * single, throughput=64 / batch) for single, batch in best]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences onnxruntime's warning that the model should be optimized before quantization; it is."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Feeds batches of pictures to the quantizer."""

    def __init__(self, pictures: Any):
        self._batches = _batches(pictures, _BATCH)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._batches, None)
        return None if images is None else {"image": images}


def _batches(pictures: Any, size: int) -> Iterator[np.ndarray]:
    """Yields up to `CALIBRATION_PICTURES`, at equal distances: data sets are often sorted by class."""
    count = min(len(pictures), CALIBRATION_PICTURES)
    rows = np.linspace(0, len(pictures) - 1, count).astype(np.int64)
    for start in range(0, count, size):
        yield np.asarray(pictures[rows[start : start + size]])


def _open(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _time(session: Any, images: np.ndarray, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        session.run(["logits"], {"image": images})
    return (time.perf_counter() - start) / repetitions
