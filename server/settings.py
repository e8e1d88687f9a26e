"""The settings of the server, from environment variables."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import cpus, files
from server.errors import StartError

_SHIPPED_MODEL = Path(__file__).parent / "models" / "tiny_imagenet.onnx"

# Kubernetes sets these in every pod beside a service named jaxcnn.
_OF_KUBERNETES = re.compile(r"JAXCNN_(SERVICE|PORT)(_.*)?")

# The one spelling that browsers send: an origin in any other would be allowed, and match no page.
_HOST = r"([a-z0-9._-]+|\[[0-9a-f:.]+\])"
_ORIGIN = rf"\*|(http://{_HOST}(?!:80$)|https://{_HOST}(?!:443$))(:[1-9][0-9]{{0,4}})?"
_AN_ORIGIN = (
    "origins such as https://example.org, or *, spelt as browsers do (in small letters, no default port, no path, no *"
    " within a name)"
)


def _number(default: int | Callable[[], int], *, low: int, high: int) -> Any:  # Any, as dataclasses.field gives it.
    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    if callable(default):
        return field(default_factory=default, metadata={"parse": parse})
    return field(default=default, metadata={"parse": parse})


def _switch(default: bool) -> Any:
    def parse(text: str) -> bool:
        if text not in ("on", "off"):
            raise ValueError("on or off")
        return text == "on"

    return field(default=default, metadata={"parse": parse})


def _list(pattern: str, what: str) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        items = tuple(each.strip() for each in text.split(","))
        if not all(re.fullmatch(pattern, each) for each in items):
            raise ValueError(f"{what}, with commas between them")
        return items

    return field(default=(), metadata={"parse": parse})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may choose. The variable of a field is its name in capitals after `JAXCNN_`."""

    model: Path = field(default=_SHIPPED_MODEL, metadata={"parse": Path})
    """The ONNX file to serve. Its name without the ending is the model's name in the Open Inference Protocol."""
    reload_seconds: int = _number(0, low=0, high=86_400)
    """How often to look whether the file has changed, and to serve the new one; 0 is never."""
    threads: int = _number(cpus.available, low=1, high=256)
    """Batches decoded and classified at the same time, and cores that a lone one is spread over."""
    max_batch: int = _number(4, low=1, high=64)
    """Most pictures that the model is run on at once. They are those that wait anyway: none waits for a batch."""
    max_requests: int = _number(64, low=1, high=100_000)
    """Requests whose bodies are there, in work and waiting; the rest get 503."""
    max_body_bytes: int = _number(10 * 2**20, low=1024, high=2**31)
    """Largest request body."""
    max_buffer_bytes: int = _number(64 * 2**20, low=1024, high=2**40)
    """Bodies held at the same time, all together; requests that would need more get 503."""
    max_images: int = _number(32, low=1, high=1024)
    """Most pictures in one request."""
    max_pixels: int = _number(25_000_000, low=1, high=89_478_485)
    """Largest picture, width times height, checked before it is decoded: a pixel takes up to 24 bytes of memory on
    each thread. At the highest value Pillow itself begins to warn of decompression bombs."""
    read_seconds: int = _number(30, low=1, high=3600)
    """How long a client may take to send the head of a request, how long to send its body, and how long it may not read
    on in an answer."""
    deadline_ms: int = _number(10_000, low=1, high=3_600_000)
    """How long an answer may take once the body is there; then it is 504. What is sure to miss it gets 503 at once."""
    drain_seconds: int = _number(1, low=0, high=3600)
    """How long after SIGTERM the server still takes requests while /readyz says 503: as long as the load balancer
    needs to notice."""
    api_keys: tuple[str, ...] = _list(r"[!-+\--~]{8,}", "keys of 8 or more visible ASCII characters")
    """If any, one of them has to come with every request but those for health, the demo page and the documentation."""
    cors_origins: tuple[str, ...] = _list(_ORIGIN, _AN_ORIGIN)
    """Web sites whose pages may call the server from a browser."""
    access_log: bool = _switch(True)
    """Whether each request is logged."""
    page: bool = _switch(True)
    """Whether `/` is the demo page, which also lets its visitors fetch the model file."""
    onnxruntime_web: Path | None = field(default=None, metadata={"parse": Path})
    """The folder `dist` of the npm package onnxruntime-web, for the demo page to run the model in the browser."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Reads the settings; an unset or empty variable leaves the default.

    Raises:
        StartError: a value is not what its setting takes, there is no such setting, or there is no model to serve.
    """
    fields = {f"JAXCNN_{each.name.upper()}": each for each in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith("JAXCNN_") or _OF_KUBERNETES.fullmatch(variable) or not text:
            continue
        if variable not in fields:
            raise StartError(f"There is no setting {variable}: unset it, or use one of {', '.join(fields)}.")
        values[fields[variable].name] = _parse(variable, text, fields[variable].metadata["parse"])
    chosen = Settings(**values)
    if "model" not in values:
        _check_shipped()
    return _consistent(chosen)


def _check_shipped() -> None:
    try:
        files.open_file(_SHIPPED_MODEL).close()
    except FileNotFoundError:
        raise StartError(
            "There is no model to serve: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`."
        ) from None
    except OSError:
        pass  # Whoever loads it tells why it cannot be read.


def _parse(variable: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        shown = "not right" if variable == "JAXCNN_API_KEYS" else repr(text)  # A log is no place for keys.
        raise StartError(f"{variable} is {shown}: set it to {error}, or unset it.") from None


def _consistent(chosen: Settings) -> Settings:
    if chosen.max_buffer_bytes < chosen.max_body_bytes:
        raise StartError(
            f"JAXCNN_MAX_BUFFER_BYTES ({chosen.max_buffer_bytes}) does not hold one body of JAXCNN_MAX_BODY_BYTES"
            f" ({chosen.max_body_bytes}): raise the first or lower the second."
        )
    if chosen.onnxruntime_web is not None:
        _check_web(chosen.onnxruntime_web)
    return chosen


def _check_web(folder: Path) -> None:
    try:
        files.open_file(folder / "ort.wasm.min.mjs").close()
    except OSError as error:
        raise StartError(
            f"JAXCNN_ONNXRUNTIME_WEB is {str(folder)!r}, where there is no ort.wasm.min.mjs that can be read"
            f" ({error.strerror}): set it to the folder `dist` of the npm package onnxruntime-web, which the server's"
            " user has to be able to read, or unset it."
        ) from None
