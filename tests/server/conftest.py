"""A small model whose predictions are easy to foresee, and real uvicorn processes that serve it."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
from onnx import TensorProto, helper

from tests.server.wire import inherited

ROOT = Path(__file__).parents[2]
NAMES = ["red", "green", "blue", "white", "black"]
SIDE = 8
CONTRACT = {
    "names": NAMES,
    "image_size": [SIDE, SIDE],
    "resize": {"mode": "stretch", "filter": "bicubic"},
    "version": "1.2",
}


def build_model(
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    batch: str | int = "batch",
    side: int | str = SIDE,
    width: int | None = None,
    outputs: tuple[str, str] = ("logits", "probabilities"),
    poison: float = 509.5,
    rows: int = -1,
    work: int = 0,
    heatmap: bool = False,
    heatmap_type: int = TensorProto.FLOAT,
    heatmap_shape: Sequence[str | int] = ("batch", 4, 2),
) -> Path:
    """Writes a classifier of the average colour of a picture.

    It computes NaN if red + green - blue is above `poison`, as for pure yellow. With `rows` it fails on any other
    batch size, although it declares a symbolic one. Each unit of `work` takes some 50 ms. Its heat map is the green
    channel in 4 rows of 2.
    """
    types = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 5]) for name in outputs]
    nodes, constants = _classifier_nodes(input_name, outputs, work), _classifier_constants(poison, rows)
    if heatmap:
        nodes += _heatmap_nodes(heatmap_type)
        constants.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [1 / 250]))
        constants.append(helper.make_tensor("channel", TensorProto.INT64, [1], [1]))
        types.append(helper.make_tensor_value_info("heatmap", heatmap_type, heatmap_shape))
    inputs = [helper.make_tensor_value_info(input_name, input_type, [batch, side, width or side, 3])]
    graph = helper.make_graph(nodes, "average_colour", inputs, types, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(
        model,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in {**CONTRACT, **(metadata or {})}.items()
            if value is not None
        },
    )
    onnx.save(model, path)
    return path


def _classifier_constants(poison: float, rows: int) -> list[TensorProto]:
    weights = [10, -5, -5, 4, 0, -5, 10, -5, 4, 0, -5, -5, 10, 4, 0]
    return [
        helper.make_tensor("weights", TensorProto.FLOAT, [3, 5], [weight / 255 for weight in weights]),
        helper.make_tensor("bias", TensorProto.FLOAT, [5], [0, 0, 0, 0, 2]),
        helper.make_tensor("yellow", TensorProto.FLOAT, [3, 1], [1, 1, -1]),
        helper.make_tensor("shape", TensorProto.INT64, [2], [rows, 5]),
        helper.make_tensor("sides", TensorProto.INT64, [2], [1024, 1024]),
        helper.make_tensor("nothing", TensorProto.FLOAT, [], [0]),
        helper.make_tensor("poison", TensorProto.FLOAT, [1], [poison]),
    ]


def _classifier_nodes(input_name: str, outputs: tuple[str, str], work: int) -> list[onnx.NodeProto]:
    logits, probabilities = outputs
    return [
        helper.make_node("Cast", [input_name], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["colour"], axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["colour", "weights", "bias"], ["scores"]),
        # The square root of a negative number is NaN.
        helper.make_node("MatMul", ["colour", "yellow"], ["yellowness"]),
        helper.make_node("Sub", ["poison", "yellowness"], ["room"]),
        helper.make_node("Sqrt", ["room"], ["same_for_all_classes"]),
        helper.make_node("Sub", ["scores", "same_for_all_classes"], ["shifted"]),
        *_busy_work(work),
        helper.make_node("Reshape", ["shifted" if not work else "slow", "shape"], [logits]),
        helper.make_node("Softmax", [logits], [probabilities], axis=-1),
    ]


def _heatmap_nodes(heatmap_type: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["blocks"], kernel_shape=[2, 4], strides=[2, 4]),
        helper.make_node("Split", ["blocks"], ["r", "g", "b"], axis=1),
        helper.make_node("Squeeze", ["g", "channel"], ["green"]),
        helper.make_node("Mul", ["green", "scale"], ["share"]),
        helper.make_node("Cast", ["share"], ["heatmap"], to=heatmap_type),
    ]


def _busy_work(work: int) -> list[onnx.NodeProto]:
    """Multiplies large matrices of zeros, and adds the result to `shifted`."""
    if not work:
        return []
    return [
        helper.make_node("ReduceMean", ["shifted"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Expand", ["zero", "sides"], ["matrix0"]),
        *(helper.make_node("MatMul", [f"matrix{i}"] * 2, [f"matrix{i + 1}"]) for i in range(work)),
        helper.make_node("ReduceMax", [f"matrix{work}"], ["largest"], keepdims=0),
        helper.make_node("Add", ["shifted", "largest"], ["slow"]),
    ]


def start_uvicorn(log: Path | str | int, *, port: int = 0, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a server that shuts down without a grace period; `log` is a path, or a file descriptor."""
    settings = {"JAXCNN_DRAIN_SECONDS": "0", **environment}
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        stream = log if isinstance(log, int) else stack.enter_context(open(log, "wb"))
        return subprocess.Popen(
            command, cwd=ROOT, env={**inherited(), **settings}, stdout=stream, stderr=subprocess.STDOUT
        )


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log: Path
    port: int
    client: httpx.Client


@contextlib.contextmanager
def serving(log: Path, **environment: str) -> Iterator[Server]:
    """Runs uvicorn on a free port until the end of the block."""
    process = start_uvicorn(log, **environment)
    try:
        while not (running := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        port = int(running[1])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            yield Server(process, log, port, client)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def model_builder() -> Callable[..., Path]:
    return build_model


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    return start_uvicorn


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Server]]:
    return functools.partial(serving, tmp_path / "log")


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., contextlib.AbstractContextManager[Server]]:
    return functools.partial(serving, tmp_path_factory.mktemp("server") / "log")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may not enter, even if it runs as root."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


@pytest.fixture(scope="session")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(log, JAXCNN_MODEL=str(model_path), JAXCNN_MAX_BODY_BYTES="1000000", JAXCNN_MAX_IMAGES="4") as it:
        yield it


@pytest.fixture(scope="session")
def client(server: Server) -> httpx.Client:
    return server.client
