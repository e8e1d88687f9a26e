"""The endpoints that classify pictures."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server import body
from server.admission import Place
from server.info import find_model
from server.protocols import Query
from server.protocols.native import NativeQuery
from server.protocols.open_inference import InferQuery
from server.service import ServedModel, Service
from server.shares import client_of


async def predict(request: Request) -> Response:
    """`POST /predict`, `POST /models/NAME/predict` and `POST /invocations`: classifies pictures."""
    service: Service = request.state.service
    served = find_model(request)
    # Check the query string before reading the body.
    top_k = _top_k(request, classes=len(served.model.names))
    heatmap = _heatmap(request)

    async with _body(request, served) as (place, content):
        query = NativeQuery(
            content_type=request.headers.get("content-type", ""),
            body=content,
            encoding=body.encoding_of(request),
            top_k=top_k,
            heatmap=heatmap,
            limits=service.settings,
        )
        return await _answer(request, served, place, query)


async def infer(request: Request) -> Response:
    """`POST /v2/models/NAME/infer`: classifies pictures in the Open Inference Protocol."""
    service: Service = request.state.service
    served = find_model(request)
    json_size = request.headers.get("inference-header-content-length")
    async with _body(request, served) as (place, content):
        encoding = body.encoding_of(request)
        query = InferQuery(body=content, encoding=encoding, json_size=json_size, limits=service.settings)
        return await _answer(request, served, place, query)


@asynccontextmanager
async def _body(request: Request, served: ServedModel) -> AsyncIterator[tuple[Place, bytes]]:
    """Reads the body, and keeps a place in the model's queue for the request until the end of the block."""
    service: Service = request.state.service
    with served.places.place(client_of(request.scope), served.workers.expected_wait) as place:
        content = await body.read(request, place, service.settings)
        place.enter()
        yield place, content


async def _answer(request: Request, served: ServedModel, place: Place, query: Query) -> Response:
    """Waits for the workers, or until the client disconnects."""
    # The body has been read, so the next message is the client's disconnect.
    gone = asyncio.ensure_future(request.receive())
    try:
        answer = await served.workers.answer(query, gone, place, request.state.stages)
    finally:
        gone.cancel()
    return Response(answer.body, headers=dict(answer.headers))


def _top_k(request: Request, *, classes: int) -> int:
    """Returns how many classes to send; by default three, as the original system did."""
    text = request.query_params.get("top_k")
    if text is None:
        return min(3, classes)
    if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= classes:
        return int(text)
    raise HTTPException(400, f"`top_k` must be an integer from 1 to {classes}, the number of classes.")


def _heatmap(request: Request) -> bool:
    text = request.query_params.get("heatmap", "false")
    if text not in ("true", "false"):
        raise HTTPException(400, "`heatmap` must be true or false.")
    return text == "true"
