"""The settings of the server, from environment variables."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import StartError

_SHIPPED_MODEL = Path(__file__).parent / "models" / "tiny_imagenet.onnx"


def _limit(default: int, *, low: int, high: int) -> Any:  # Any, as dataclasses.field gives it.
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator may choose. The variable of a field is its name in capitals after `JAXCNN_`."""

    model: Path = _SHIPPED_MODEL
    """The ONNX file to serve."""
    threads: int = _limit(2, low=1, high=256)
    """Requests decoded and classified at the same time; each uses one core."""
    max_requests: int = _limit(64, low=1, high=100_000)
    """Requests admitted at the same time, waiting ones included; the rest get 503. With `max_body_bytes` it bounds
    the memory that bodies take."""
    max_body_bytes: int = _limit(10 * 2**20, low=1024, high=2**31)
    """Largest request body."""
    max_images: int = _limit(32, low=1, high=1024)
    """Most pictures in one request."""
    max_pixels: int = _limit(25_000_000, low=1, high=89_478_485)
    """Largest picture, width times height, checked before it is decoded: a pixel takes up to 16 bytes of memory on
    each thread. At the highest value Pillow itself begins to warn of decompression bombs."""
    read_seconds: int = _limit(30, low=1, high=3600)
    """How long a client may take to send a request's body."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Reads the settings; an unset or empty variable leaves the default.

    Variables with other names are ignored: Kubernetes sets some (`JAXCNN_PORT`) beside a service named jaxcnn.

    Raises:
        StartError: a value is not what its setting takes, or there is no model to serve.
    """
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Settings):
        variable = f"JAXCNN_{each.name.upper()}"
        text = environment.get(variable, "")
        if text:
            values[each.name] = Path(text) if each.name == "model" else _whole_number(variable, text, each.metadata)
    if "model" not in values and not _SHIPPED_MODEL.exists():
        raise StartError("There is no model to serve: set JAXCNN_MODEL to a file made by `python -m export WORKDIR`.")
    return Settings(**values)


def _whole_number(variable: str, text: str, limits: Mapping[str, int]) -> int:
    low, high = limits["low"], limits["high"]
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise StartError(f"{variable} is {text!r}: set it to a whole number from {low} to {high}, or unset it.")
