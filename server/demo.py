"""The demo page: its files, the model file for the browser, and the runtime that runs it there."""

import asyncio
import dataclasses
import logging
import re
from contextlib import suppress
from functools import partial
from io import BufferedReader
from pathlib import Path

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import files
from server.body import end_at
from server.prepared import Prepared, etag_of, is_known
from server.service import Service
from server.settings import Settings
from server.shares import Claim, client_of

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
_TYPES |= {".wasm": "application/wasm"}

_NAMES = frozenset(path.name for path in _FOLDER.iterdir())

# The files that onnxruntime-web loads for its plain WebAssembly backend.
_RUNTIME = re.compile(r"ort\.wasm\.min\.mjs|ort-wasm-simd-threaded\.(mjs|wasm)")

# Values of Cache-Control: ask the server each time, or never again.
_REVALIDATE = "no-cache"
_IMMUTABLE = "private, max-age=31536000, immutable"

# Each download has as much in memory.
_CHUNK_BYTES = 64 * 1024

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
    " script-src 'self' 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Accept-Ranges": "none",
}

_log = logging.getLogger(__name__)


async def index(request: Request) -> Response:
    """`GET /`: the demo page."""
    return _page_file(request, "index.html")


async def page_file(request: Request) -> Response:
    """`GET /page/NAME`: a style sheet or script of the page."""
    return _page_file(request, request.path_params["name"])


def _page_file(request: Request, name: str) -> Response:
    service = _check_page(request)
    # Only names of the folder itself, so that no path leads out of it.
    if name not in _NAMES:
        raise HTTPException(404)

    def make() -> Prepared:
        with _open(_FOLDER / name) as file:
            return Prepared(file.read(), media_type=_type(name), headers=_HEADERS)

    return service.prepared.get(f"page/{name}", make).respond(request)


async def model_json(request: Request) -> Response:
    """`GET /model.json`: what the page needs to know about the default model."""
    service = _check_page(request)
    model = service.default.model

    def make() -> Prepared:
        content = {
            "name": model.name,
            "names": model.names,
            "height": model.height,
            "width": model.width,
            "resize": dataclasses.asdict(model.resize),
            "heatmap": model.has_heatmap,
            "in_browser": service.settings.onnxruntime_web is not None,
            "max_bytes": service.settings.max_body_bytes,
            "sha256": model.digest,
        }
        return Prepared(orjson.dumps(content), media_type="application/json")

    return service.prepared.get("model.json", make).respond(request)


async def model_file(request: Request) -> Response:
    """`GET /model.onnx`: the file of the default model. `?SHA256` gets that file or a 404, so browsers may cache it."""
    service = _check_page(request)
    digest = request.scope["query_string"].decode("latin-1")
    model = service.default.model
    if digest not in ("", model.digest):
        raise HTTPException(404, "The model file has been replaced: reload the page.")
    response = _WholeFile(model.path, request, cache=_IMMUTABLE if digest else _REVALIDATE)
    # The file on disk may be newer than the model in memory.
    if digest and await response.digest() != digest:
        response.file.close()
        raise HTTPException(404, _not_served_yet(service.settings))
    return response


async def runtime_file(request: Request) -> Response:
    """`GET /onnxruntime-web/NAME`: a file of the runtime, if the operator has set it up."""
    service = _check_page(request)
    folder, name = service.settings.onnxruntime_web, request.path_params["name"]
    if folder is None or not _RUNTIME.fullmatch(name):
        raise HTTPException(404)
    response = _WholeFile(folder / name, request, cache=_REVALIDATE)
    # Files of two versions have the same addresses, but do not run together: browsers recognise them by their content.
    response.headers["ETag"] = etag = etag_of(await response.digest())
    if is_known(request, etag):
        response.file.close()
        return Response(status_code=304, headers={**_HEADERS, "Cache-Control": _REVALIDATE, "ETag": etag})
    return response


def _check_page(request: Request) -> Service:
    """Returns the service, if the demo page is on.

    Raises:
      HTTPException: 404, it is off.
    """
    service: Service = request.state.service
    if not service.settings.page:
        raise HTTPException(404)
    return service


class _WholeFile(Response):
    """Sends a whole file, whatever `Range` asks for, with the content that it had when it was opened.

    Starlette's FileResponse opens the file only after sending the headers, when it may have been replaced or removed.
    A client that reads slowly is cut off if others wait.
    """

    def __init__(self, path: Path, request: Request, *, cache: str) -> None:
        self._path = path
        self.file = _open(path)
        self.signature = files.signature(self.file)
        self._service: Service = request.state.service
        headers = {**_HEADERS, "Cache-Control": cache, "Content-Length": str(self.signature.size)}
        super().__init__(media_type=_type(path.name), headers=headers)

    async def digest(self) -> str:
        """Returns the SHA-256 of the file in hexadecimal."""
        return await self._service.digests.find(self._path, self.file, self.signature)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file, cut short if it changes meanwhile: after the headers, only that shows the client an error.

        Raises:
          HTTPException: 503, enough files are being sent.
        """
        with self.file, self._service.admission.download(client_of(scope)) as claim, suppress(TimeoutError):
            async with asyncio.timeout(None) as timer:
                claim.evict = partial(end_at, timer, 0)
                await self._send(Request(scope, receive), send, claim)

    async def _send(self, request: Request, send: Send, claim: Claim) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        left = 0 if request.method == "HEAD" else self.signature.size
        is_over = False
        # `send` does not say that the client is gone: the rest of the file would be read for nobody.
        while not is_over and not await request.is_disconnected():
            size = min(left, _CHUNK_BYTES)
            chunk = await asyncio.to_thread(self.file.read, size)
            if len(chunk) < size or files.signature(self.file) != self.signature:
                _log.warning("%s was written to while it was being sent: the response is cut short", self.file.name)
                return
            left -= size
            is_over = left == 0
            # This waits until the client has read nearly all of the last chunk.
            await send({"type": "http.response.body", "body": chunk, "more_body": not is_over})
            claim.move(size)


def _type(name: str) -> str:
    return _TYPES.get(Path(name).suffix, "application/octet-stream")


def _open(path: Path) -> BufferedReader:
    """Opens a file of the page.

    Raises:
      HTTPException: 404, it cannot be read.
    """
    try:
        return files.open_file(path)
    except OSError as error:
        text = f"The server cannot read this file of the demo page ({error.strerror}): ask its operator."
        raise HTTPException(404, text) from None


def _not_served_yet(settings: Settings) -> str:
    if not settings.reload_seconds:
        return (
            "The model file has been replaced, but the server still has the old model: its operator must restart it, or"
            " set JAXCNN_RELOAD_SECONDS."
        )
    return (
        f"The model file has been replaced, but the server, which checks every {settings.reload_seconds} seconds, has"
        " not loaded the new one yet: reload the page later. If that does not help, the server's log says why."
    )
