"""The targets: each takes any bytes, and raises only if the code that it calls has a fault.

Errors that are meant for the sender of the bytes, such as `HTTPException` and `UserError`, are no faults. What a target
also compares is in its docstring. Some take a first line that says what the rest is. What clients send may take so much
memory at most, as Python counts it: unlike a time, that is the same on every machine.
"""

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import string
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from starlette.exceptions import HTTPException

from jaxcnn import calibration, config_file, onnx_file
from jaxcnn.bulk.jsonl_output import JsonlOutput
from jaxcnn.checksum import ChecksumError
from jaxcnn.config import Config
from jaxcnn.data import decoding, entry
from jaxcnn.data.sources.class_folders import open_class_folders
from jaxcnn.data.sources.folder import folder_source
from jaxcnn.data.sources.tree import Tree
from jaxcnn.errors import UserError
from jaxcnn.evaluation_record import check_replaceable
from jaxcnn.models.pretrained.pth import read_pth
from jaxcnn.run import earlier_trainings, recorded, seal, sessions
from jaxcnn.run.metrics_log import read_log
from jaxcnn.run.workdir import Workdir
from jaxcnn.weights import read_weights
from server import integrity, model, picture, png
from server.errors import PictureError, StartError
from server.protocols import Outputs
from server.protocols.compression import decompress
from server.protocols.native import parse
from server.protocols.open_inference import InferQuery
from server.protocols.text import parse_base64
from server.resize import Resize
from server.settings import Settings
from tests.fuzz.connection import talk

SIDE = 8
LIMITS = Settings(max_images=4, max_pixels=20_000, max_request_pixels=50_000, max_body_bytes=2_000_000)
NAMES = ("cat", "dog", "eel")
OUTPUTS = {"logits": (3,), "probabilities": (3,), "heatmap": (2, 2)}
MODEL = model.Model(
    session=None,
    path=Path("model.onnx"),
    name="model",
    version="1",
    digest="",
    signature=None,
    names=NAMES,
    height=SIDE,
    width=SIDE,
    resize=Resize(),
    outputs=OUTPUTS,
)
"""A model that is never run."""
TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keywords of the texts of a PNG that are inflated, to a megabyte at most, as they may have an orientation."""
SEGMENTS = 3000
"""Segments that a small JPEG may have."""
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
Image.init()  # What is loaded at the first picture is not counted.
STRICT_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


class Wanted:
    """A request that is wanted whatever it costs."""

    def is_wanted(self) -> bool:
        return True

    def check_cost(self, cost: picture.Cost) -> None:
        assert cost.pixels > 0
        assert cost.bytes > 0


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Accepts the refusal of a request, which says in one line what is wrong."""
    try:
        yield
    except HTTPException as error:
        check_refusal(error)


def check_refusal(error: HTTPException) -> None:
    """Checks status and message of a refusal."""
    assert error.status_code in (400, 413, 415), error
    check_line(error.detail)


def check_line(message: str) -> None:
    """Checks that a message is one line."""
    assert message.isprintable(), message


@contextlib.contextmanager
def bounded(most: float) -> Iterator[None]:
    """Checks the most bytes that Python, NumPy and orjson take at once, also if the request is refused."""
    tracemalloc.start()
    try:
        yield
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= most, f"{peak} bytes at once, at most {most} allowed"


@contextlib.contextmanager
def folder_with(name: str, content: bytes) -> Iterator[Path]:
    """Writes a file into a new folder, in memory if the system has such a place; yields the folder."""
    shared = "/dev/shm"
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if os.path.isdir(shared) else None))
    try:
        (folder / name).write_bytes(content)
        yield folder
    finally:
        shutil.rmtree(folder)


# What clients send


def decode_picture(data: bytes) -> None:
    """Compares what the server decodes with what training decodes, as models see the one after the other."""
    try:
        served = serve_picture(data)
    except PictureError as error:
        check_line(str(error))
        # Training takes more pixels, and waits for the run lengths of a large BMP, which Pillow reads one by one.
        if "pixels" in str(error) or "BMP" in str(error):
            return
        served = None
    # Training is stricter about damaged texts of PNGs, at most, which the server leaves out.
    may_differ = served is None or data.startswith(png.SIGNATURE)
    with contextlib.suppress(UserError) if may_differ else contextlib.nullcontext():
        trained = decoding.decode(data, size=SIDE, where="picture")
        if served is not None:
            assert served.shape == (SIDE, SIDE, 3)
            np.testing.assert_array_equal(served, trained)


def serve_picture(data: bytes) -> np.ndarray:
    """Decodes a picture as the server does, which takes no more memory for a file that inflates to more."""
    texts = min(sum(data.count(keyword) for keyword in TEXTS), 10)
    most = 500_000 + 25 * LIMITS.max_pixels + 16 * len(data) + 500_000 * texts
    # To open it, a text is inflated, in pieces that are joined.
    with bounded(most - 25 * LIMITS.max_pixels + 2_500_000 * (texts > 0)):
        opened = picture.Picture(data, height=SIDE, width=SIDE, max_pixels=LIMITS.max_pixels)
    parsed = getattr(opened._image, "applist", ())
    assert len(parsed) <= SEGMENTS + len(data) // 1000, f"{len(parsed)} segments were parsed"
    with bounded(most):
        return opened.decode()


def parse_form(data: bytes) -> None:
    """Parses a body; the first line is its Content-Type and its Content-Encoding, separated by a tab."""
    head, _, body = data.partition(b"\n")
    content_type, _, encoding = head.decode("latin-1").partition("\t")
    with refusals():
        known = encoding if encoding in ("gzip", "deflate") else "identity"
        with bounded(3 * LIMITS.max_body_bytes):
            content = decompress(body, known, max_bytes=LIMITS.max_body_bytes)
        # orjson takes 13 bytes for each of its text before it parses that.
        most = 15 * len(content) + 2_000_000 if "json" in content_type.lower() else 5 * len(content) // 2 + 300_000
        with bounded(most + 50 * len(head)):
            payload = parse(content_type, content, max_images=LIMITS.max_images)
        assert 1 <= len(payload.pictures) <= LIMITS.max_images
        assert payload.is_list or len(payload.pictures) == 1


def infer(data: bytes) -> None:
    """Answers a request of the Open Inference Protocol.

    The first line is the length of its JSON text, or empty; and its Content-Encoding after a tab, if it has one.
    """
    head, _, body = data.partition(b"\n")
    size, _, encoding = head.decode("latin-1").partition("\t")
    known = encoding if encoding in ("gzip", "deflate") else "identity"
    query = InferQuery(body=body, encoding=known, json_size=size or None, limits=LIMITS)
    # Several open pictures have texts, besides what orjson takes.
    with refusals(), bounded(15 * min(query.size, LIMITS.max_body_bytes) + 20_000_000):
        decoded = query.decode(MODEL, Wanted())
        count = len(decoded.images)
        assert decoded.images.shape == (count, SIDE, SIDE, 3)
        assert decoded.outputs <= OUTPUTS.keys()
        outputs: Outputs = {name: np.ones((count, *OUTPUTS[name]), np.float32) for name in decoded.outputs}
        answer = decoded.answer(outputs)
        length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.body)))
        tensors = json.loads(answer.body[:length])["outputs"]
        sizes = [tensor.get("parameters", {}).get("binary_data_size", 0) for tensor in tensors]
        assert length + sum(sizes) == len(answer.body)


def decode_base64(data: bytes) -> None:
    """Compares the decoder with Python's, on text in UTF-8."""
    text = data.decode(errors="replace")
    try:
        found = parse_base64("image", text)
    except HTTPException as error:
        check_refusal(error)
        found = None
    plain = text.translate(dict.fromkeys(map(ord, string.whitespace)))
    if plain[:5].lower() != "data:":
        assert found == (base64.b64decode(plain) if STRICT_BASE64.fullmatch(plain) else None)


# Files


def read_zip(data: bytes) -> None:
    """Opens a zip as a data set, and reads all pictures in it."""
    with folder_with("pictures.zip", data) as folder, contextlib.suppress(UserError):
        dataset = folder_source(str(folder / "pictures.zip")).open()
        for pictures in (dataset.train, dataset.validation):
            for index in range(len(pictures)):
                with contextlib.suppress(UserError):
                    assert isinstance(pictures[index].encoded, bytes)


def list_folders(data: bytes) -> None:
    """Finds the classes in a folder; each line is the path of a picture, or of a folder if it ends with a slash."""
    paths = [os.fsdecode(line) for line in data.split(b"\n") if line]
    # Paths from a disk or a zip are relative, and lead nowhere else.
    paths = [path for path in paths if not path.startswith("/") and ".." not in PurePosixPath(path).parts]
    files = [PurePosixPath(path) for path in paths if not path.endswith("/") and PurePosixPath(path).parts]
    folders = [PurePosixPath(path) for path in paths if path.endswith("/")]
    with contextlib.suppress(UserError):
        tree = Tree.from_paths(files, folders, where="folder", read=lambda _: PNG)
        dataset = open_class_folders(tree, name="folder")
        assert len(set(dataset.names)) == len(dataset.names)
        for pictures in (dataset.train, dataset.validation):
            assert all(0 <= pictures[index].label < len(dataset.names) for index in range(len(pictures)))


def read_safetensors(data: bytes) -> None:
    """Reads weights."""
    with folder_with("weights.safetensors", data) as folder, contextlib.suppress(UserError):
        read_weights(str(folder / "weights.safetensors"))


def read_pickle(data: bytes) -> None:
    """Reads a checkpoint of PyTorch."""
    with folder_with("weights.pth", data) as folder, contextlib.suppress(UserError):
        read_pth(folder / "weights.pth")


def read_onnx(data: bytes) -> None:
    """Loads a model file into the server, and opens it as the commands do."""
    with folder_with("model.onnx", data) as folder:
        try:
            model.load(folder / "model.onnx", max_batch=1, threads=1)
        except StartError as error:
            check_line(str(error))
        with contextlib.suppress(UserError):
            onnx_file.open_model(folder / "model.onnx")


RECORDS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda path: Workdir(path.parent).read_config(),
    "classes.json": lambda path: Workdir(path.parent).read_classes(),
    "pictures.json": lambda path: Workdir(path.parent).read_pictures(),
    "environment.json": lambda path: Workdir(path.parent).read_environment(),
    "earlier_sessions.json": lambda path: sessions._read_earlier(Workdir(path.parent)),
    "earlier_trainings.json": earlier_trainings.read_earlier,
    "metrics.jsonl": read_log,
    "calibration.json": functools.partial(calibration.read_calibration, step=1),
    "evaluation.json": recorded._read_evaluation,
    "other.json": check_replaceable,
    "entry.json": lambda path: entry.read_description(path.parent, version=1),
    "checksums.json": lambda path: seal.check_files(path.parent, ("params",)),
    "settings.json": lambda path: config_file.read_settings(path, Config()),
    "settings.toml": lambda path: config_file.read_settings(path, Config()),
    "predictions.jsonl": lambda path: JsonlOutput(path, ["file", "predicted_class", "model"], "1f").close(),
    "model.json": lambda path: integrity.read_description(path.with_suffix(".onnx")),
}
"""Readers of what a run, an export or a user leaves in a folder, by the name of the file."""


def read_record(data: bytes) -> None:
    """Reads a file whose name is the first line."""
    name, _, content = data.partition(b"\n")
    read = RECORDS.get(name.decode("latin-1"))
    if read is None:
        return
    with folder_with(name.decode(), content) as folder, contextlib.suppress(UserError, ChecksumError):
        try:
            read(folder / name.decode())
        except entry.DAMAGED:
            # Whoever reads an entry of the cache expects any of these.
            if name != b"entry.json":
                raise


# Connections


def send_requests(data: bytes) -> None:
    """Sends bytes over a connection; what is answered does not depend on the pieces in which they arrive."""
    whole, pieces = talk([data]), talk([data[place : place + 1] for place in range(len(data))])
    assert pieces == whole
    talk([data[:1], data[1:-1], data[-1:]], one_by_one=True)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "picture": decode_picture,
    "form": parse_form,
    "inference": infer,
    "base64": decode_base64,
    "zip": read_zip,
    "folder": list_folders,
    "safetensors": read_safetensors,
    "pth": read_pickle,
    "onnx": read_onnx,
    "record": read_record,
    "http": send_requests,
}
