"""The demo page: its files, the model file for the browser, and the runtime that runs it there."""

import asyncio
import logging
import re
from io import BufferedReader
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from server import files
from server.service import Service
from server.settings import Settings

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
_TYPES |= {".wasm": "application/wasm"}

# What onnxruntime-web loads for the plain WebAssembly backend.
_RUNTIME = re.compile(r"ort\.wasm\.min\.mjs|ort-wasm-simd-threaded\.(mjs|wasm)")

_ASK = "no-cache"
_KEEP = "private, max-age=31536000, immutable"

_CHUNK_BYTES = 256 * 1024

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " script-src 'self' 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Accept-Ranges": "none",
}

_log = logging.getLogger(__name__)


async def index(request: Request) -> Response:
    """`GET /`."""
    _require_page(request)
    return _file(_FOLDER / "index.html")


async def part(request: Request) -> Response:
    """`GET /page/NAME`: a style sheet or script of the page."""
    _require_page(request)
    path = _FOLDER / request.path_params["name"]
    if path.name not in _names():
        raise HTTPException(404)
    return _file(path)


async def info(request: Request) -> Response:
    """`GET /model.json`: what the page has to know of the model."""
    service = _require_page(request)
    model = service.model
    return JSONResponse(
        {
            "name": model.name,
            "names": model.names,
            "height": model.height,
            "width": model.width,
            "heatmap": model.has_heatmap,
            "in_browser": service.settings.onnxruntime_web is not None,
            "sha256": model.digest,
        }
    )


async def model_file(request: Request) -> Response:
    """`GET /model.onnx`: the file that is served; `?SHA256` is that file or none, and a browser may keep it."""
    service = _require_page(request)
    digest = request.scope["query_string"].decode("latin-1")
    if digest not in ("", service.model.digest):
        raise HTTPException(404, "The model file has been replaced: reload the page.")
    response = _file(service.settings.model, cache=_KEEP if digest else _ASK)
    if digest and await _digest(response, service) != digest:
        response.file.close()
        raise HTTPException(404, _not_served_yet(service.settings))
    return response


async def runtime(request: Request) -> Response:
    """`GET /onnxruntime-web/NAME`."""
    folder = _require_page(request).settings.onnxruntime_web
    name = request.path_params["name"]
    if folder is None or not _RUNTIME.fullmatch(name):
        raise HTTPException(404)
    return _file(folder / name, cache="max-age=86400")


def _require_page(request: Request) -> Service:
    service: Service = request.state.service
    if not service.settings.page:
        raise HTTPException(404)
    return service


def _names() -> set[str]:
    return {each.name for each in _FOLDER.iterdir()}


class _WholeFile(Response):
    """A file that is sent whole, whatever `Range` asks for, and as it was when it was opened, or not to its end.

    Starlette's own opens it only after its headers are sent, by when another file, or none, may be in its place.
    """

    def __init__(self, file: BufferedReader, *, media_type: str, cache: str) -> None:
        self.file = file
        self.signature = files.signature(file)
        headers = {**_HEADERS, "Cache-Control": cache, "Content-Length": str(self.signature.size)}
        super().__init__(media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. To be cut short is the one thing that tells a client, which has the headers, that it is wrong."""
        with self.file as file:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            left = 0 if scope["method"] == "HEAD" else self.signature.size
            is_over = False
            while not is_over:
                size = min(left, _CHUNK_BYTES)
                chunk = await asyncio.to_thread(file.read, size)
                if len(chunk) < size or files.signature(file) != self.signature:
                    _log.warning("%s was written to while it was sent: the answer is cut short", file.name)
                    return
                left -= size
                is_over = left == 0
                await send({"type": "http.response.body", "body": chunk, "more_body": not is_over})


def _file(path: Path, *, cache: str = _ASK) -> _WholeFile:
    try:
        file = files.open_file(path)
    except OSError as error:
        text = f"The server cannot read this file of the demo page ({error.strerror}): ask its operator."
        raise HTTPException(404, text) from None
    return _WholeFile(file, media_type=_TYPES.get(path.suffix, "application/octet-stream"), cache=cache)


async def _digest(response: _WholeFile, service: Service) -> str:
    """The digest of the model file. It is read only if its signature is new, which a copy of the same may have too."""
    signature, digest = service.seen
    if response.signature != signature:
        digest = await asyncio.to_thread(files.digest, response.file)
        service.seen = response.signature, digest
    return digest


def _not_served_yet(settings: Settings) -> str:
    if not settings.reload_seconds:
        return (
            "The model file has been replaced, and the server goes on with the old one: its operator has to restart it,"
            " or to set JAXCNN_RELOAD_SECONDS."
        )
    return (
        f"The model file has been replaced, and the server, which looks every {settings.reload_seconds} seconds, does"
        " not have the new one yet: reload the page later; if that does not help, the server's log says what is wrong."
    )


ROUTES: list[BaseRoute] = [
    Route("/", index),
    Route("/model.json", info),
    Route("/page/{name}", part),
    Route("/model.onnx", model_file),
    Route("/onnxruntime-web/{name}", runtime),
]
