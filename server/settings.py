"""The settings of the server, from environment variables."""

import dataclasses
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import cpus, files, provider
from server.errors import StartError
from server.source import Source, parse_models

_SHIPPED_MODEL = Path(__file__).parent / "models" / "tiny_imagenet.onnx"

# Variables that Kubernetes sets in every pod beside a service named jaxcnn, or jaxcnn-predictor, as KServe does.
_KUBERNETES = re.compile(r"JAXCNN_(\w+_)?(SERVICE_(HOST|PORT)|PORT(_[0-9]+_(TCP|UDP|SCTP))?)(_\w+)?")

# Only the spelling that browsers send: an origin in another would be accepted here and then match no request.
_HOST = r"([a-z0-9._-]+|\[[0-9a-f:.]+\])"
_ORIGIN = rf"\*|(http://{_HOST}(?!:80$)|https://{_HOST}(?!:443$))(:[1-9][0-9]{{0,4}})?"
_ORIGIN_HINT = (
    "origins such as https://example.org, or *, in the spelling that browsers send (lowercase, without default port,"
    " path or * within a name)"
)


# The helpers below return Any, as `dataclasses.field` does.
def _integer(default: int | Callable[[], int], *, low: int, high: int) -> Any:
    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"an integer from {low} to {high}")

    if callable(default):
        return field(default_factory=default, metadata={"parse": parse})
    return field(default=default, metadata={"parse": parse})


def _switch(default: bool) -> Any:
    def parse(text: str) -> bool:
        if text not in ("on", "off"):
            raise ValueError("on or off")
        return text == "on"

    return field(default=default, metadata={"parse": parse})


def _list(pattern: str, hint: str) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        items = tuple(item.strip() for item in text.split(","))
        if not all(re.fullmatch(pattern, item) for item in items):
            raise ValueError(f"{hint}, separated by commas")
        return items

    return field(default=(), metadata={"parse": parse})


def _cache_folder() -> Path:
    """Returns the user's cache folder for models; a user without a home has none but the temporary folder."""
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(caches) if caches else Path.home() / ".cache") / "jaxcnn" / "models"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "jaxcnn" / "models"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. Each is read from the variable named `JAXCNN_` and the field's name in capitals."""

    model: dict[str, Source] = field(
        default_factory=lambda: {_SHIPPED_MODEL.stem: Source(path=_SHIPPED_MODEL)}, metadata={"parse": parse_models}
    )
    """The ONNX files to serve, paths or URLs with a checksum, by the names of their models."""
    default_model: str = field(default="", metadata={"parse": str})
    """Name of the model that answers requests which name none; empty for the first."""
    execution_provider: str = field(default=provider.CPU, metadata={"parse": provider.parse})
    """What onnxruntime computes with: a name in `provider.PROVIDERS`."""
    cache: Path = field(default_factory=_cache_folder, metadata={"parse": Path})
    """The folder that keeps remote model files."""
    reload_seconds: int = _integer(0, low=0, high=86_400)
    """Interval for checking whether the model file has changed, to serve the new one; 0 never checks."""
    threads: int = _integer(cpus.available, low=1, high=256)
    """Worker threads, each of which runs one batch at a time, and cores that a single run may use. Several models
    divide the threads; see `threads_per_model`."""
    max_batch: int = _integer(4, low=1, high=64)
    """Most pictures per model run. A batch takes what is already queued; no request waits for others to fill it."""
    max_requests: int = _integer(64, low=1, high=100_000)
    """Most requests to one model with a complete body, queued or running; further ones get 503."""
    max_body_bytes: int = _integer(10 * 2**20, low=1024, high=2**31)
    """Largest request body."""
    max_buffer_bytes: int = _integer(64 * 2**20, low=1024, high=2**40)
    """Memory for all request bodies together; requests that would need more get 503."""
    max_images: int = _integer(32, low=1, high=1024)
    """Most pictures per request."""
    max_pixels: int = _integer(25_000_000, low=1, high=89_478_485)
    """Largest picture, width times height, checked before it is decoded. The upper bound is where Pillow begins to warn
    of decompression bombs."""
    max_request_pixels: int = _integer(100_000_000, low=1, high=2**40)
    """Most work for the pictures of one request, in pixels of a PNG that take as long to decode; checked before any is
    decoded. See `picture.Cost`."""
    max_decode_bytes: int = _integer(640_000_000, low=2**20, high=2**40)
    """Memory for decoding large pictures on all threads together. A picture that would need more alone gets 400."""
    read_seconds: int = _integer(30, low=1, high=3600)
    """Time for a client to send its request headers, then its body, and for which it may stop reading a response."""
    min_bytes_per_second: int = _integer(1000, low=1, high=2**30)
    """Lowest rate at which a body may arrive, on average, after its first five seconds, and at which a response may be
    read, on average over `read_seconds`."""
    deadline_ms: int = _integer(10_000, low=1, high=3_600_000)
    """Time from a complete body to its response, or it gets 504. Requests that are certain to miss it get 503."""
    drain_seconds: int = _integer(1, low=0, high=3600)
    """Time after SIGTERM for which the server still serves while /readyz responds 503. Set it to the time that the load
    balancer needs to notice."""
    api_keys: tuple[str, ...] = _list(r"[!-+\--~]{8,}", "keys of 8 or more visible ASCII characters")
    """Accepted API keys. If there are any, every route that is not an `OpenRoute` needs one."""
    cors_origins: tuple[str, ...] = _list(_ORIGIN, _ORIGIN_HINT)
    """Web sites whose pages may call the server from a browser."""
    access_log: bool = _switch(True)
    """Whether each request is logged."""
    page: bool = _switch(True)
    """Whether `/` is the demo page, whose visitors can also download the model file."""
    onnxruntime_web: Path | None = field(default=None, metadata={"parse": Path})
    """The `dist` folder of the npm package onnxruntime-web, with which the demo page can run the model in the
    browser."""

    @property
    def threads_per_model(self) -> int:
        """Worker threads of each model: its part of `threads`, but two if there are two, which large pictures need."""
        return max(min(2, self.threads), self.threads // len(self.model))


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Reads the settings; an unset or empty variable keeps the default.

    Raises:
      StartError: a variable is unknown, a value is invalid, or there is no model to serve.
    """
    fields = {f"JAXCNN_{item.name.upper()}": item for item in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("JAXCNN_") or _KUBERNETES.fullmatch(variable) or not text:
            continue
        if variable not in fields:
            raise StartError(f"There is no setting {variable}: unset it, or use one of {', '.join(fields)}.")
        values[fields[variable].name] = _parse(variable, text, fields[variable].metadata["parse"])
    chosen = Settings(**values)
    _check_metrics_folder(environment.get("PROMETHEUS_MULTIPROC_DIR"))
    if "model" not in values:
        _check_shipped_model()
    _check_consistent(chosen)
    return chosen


def _parse(variable: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        # API keys must not appear in the log, nor what a URL may hold.
        shown = "invalid" if variable in ("JAXCNN_API_KEYS", "JAXCNN_MODEL") else repr(text)
        raise StartError(f"{variable} is {shown}: set it to {error}, or unset it.") from None


def _check_shipped_model() -> None:
    try:
        files.open_file(_SHIPPED_MODEL).close()
    except FileNotFoundError:
        raise StartError(
            "There is no model to serve: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        ) from None
    except OSError:
        # `model.load` explains why the file cannot be read.
        pass


def _check_consistent(chosen: Settings) -> None:
    if chosen.default_model and chosen.default_model not in chosen.model:
        raise StartError(
            f"JAXCNN_DEFAULT_MODEL is {chosen.default_model!r}, which is not a model of JAXCNN_MODEL: set it to one of"
            f" {', '.join(chosen.model)}, or unset it for the first."
        )
    if chosen.max_buffer_bytes < chosen.max_body_bytes:
        raise StartError(
            f"JAXCNN_MAX_BUFFER_BYTES ({chosen.max_buffer_bytes}) is less than JAXCNN_MAX_BODY_BYTES"
            f" ({chosen.max_body_bytes}): raise the first or lower the second."
        )
    if chosen.max_request_pixels < chosen.max_pixels:
        raise StartError(
            f"JAXCNN_MAX_REQUEST_PIXELS ({chosen.max_request_pixels}) is less than JAXCNN_MAX_PIXELS"
            f" ({chosen.max_pixels}): raise the first or lower the second."
        )
    if chosen.onnxruntime_web is not None:
        _check_onnxruntime_web(chosen.onnxruntime_web)


def _check_metrics_folder(folder: str | None) -> None:
    """Checks the folder in which several processes share their metrics; prometheus_client would fail in many lines."""
    # An empty variable would make it write to the current folder.
    if folder is not None and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise StartError(
            f"PROMETHEUS_MULTIPROC_DIR is {folder!r}, which is not a folder that the server may write to: make an empty"
            " folder for each start, or unset it."
        )


def _check_onnxruntime_web(folder: Path) -> None:
    try:
        files.open_file(folder / "ort.wasm.min.mjs").close()
    except OSError as error:
        raise StartError(
            f"JAXCNN_ONNXRUNTIME_WEB is {str(folder)!r}, but ort.wasm.min.mjs in that folder cannot be read"
            f" ({error.strerror}): set it to the `dist` folder of the npm package onnxruntime-web, readable by the"
            " server's user, or unset it."
        ) from None
