"""The endpoints that describe the server and its models: health, metadata, metrics, documentation."""

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server import docs, metrics, openapi
from server.middleware.auth import open_paths
from server.prepared import Prepared
from server.protocols import open_inference
from server.service import ServedModel, Service

_REJECTED = "was rejected, and the old model is still served: the server's log says why."


def find_model(request: Request) -> ServedModel:
    """Returns the model that the path names, or the default model if it names none.

    Raises:
      HTTPException: 404, the path names another model or version.
    """
    service: Service = request.state.service
    name = request.path_params.get("name", service.default.name)
    version = request.path_params.get("version", open_inference.VERSION)
    if name not in service.models:
        names = ", ".join(map(repr, service.models))
        raise HTTPException(404, f"There is no model of this name: the server serves only {names}.")
    if version != open_inference.VERSION:
        raise HTTPException(404, f"There is no such version: the server serves only {open_inference.VERSION!r}.")
    return service.models[name]


async def v2_server(request: Request) -> Response:
    """`GET /v2`: metadata of the server."""
    return JSONResponse(open_inference.server_metadata())


async def v2_live(request: Request) -> Response:
    """`GET /v2/health/live`: the process responds."""
    return JSONResponse({"live": True})


async def v2_ready(request: Request) -> Response:
    """`GET /v2/health/ready`: 503 while draining. It sends `live` and `ready`, as clients read either."""
    is_ready = request.state.service.admission.is_ready
    return JSONResponse({"live": True, "ready": is_ready}, 200 if is_ready else 503)


async def v2_model(request: Request) -> Response:
    """`GET /v2/models/NAME`: metadata of the model."""
    return JSONResponse(open_inference.model_metadata(find_model(request).model))


async def v2_model_ready(request: Request) -> Response:
    """`GET /v2/models/NAME/ready`: 503 while draining."""
    name = find_model(request).name
    is_ready = request.state.service.admission.is_ready
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


async def v2_model_config(request: Request) -> Response:
    """`GET /v2/models/NAME/config`: the model's configuration in Triton's form."""
    service: Service = request.state.service
    model = find_model(request).model
    return JSONResponse(open_inference.model_configuration(model, max_batch=service.settings.max_batch))


async def v2_model_statistics(request: Request) -> Response:
    """`GET /v2/models/NAME/stats` and `GET /v2/models/stats`: how many requests there were, and what they took."""
    service: Service = request.state.service
    chosen = [find_model(request)] if "name" in request.path_params else service.models.values()
    found = [open_inference.model_statistics(served.model, served.metrics.statistics()) for served in chosen]
    return JSONResponse({"model_stats": found})


async def v2_repository_index(request: Request) -> Response:
    """`POST /v2/repository/index`: the models that there are."""
    service: Service = request.state.service
    common = {"version": open_inference.VERSION, "state": "READY", "reason": ""}
    return JSONResponse([{"name": name, **common} for name in service.models])


async def healthz(request: Request) -> Response:
    """`GET /healthz`: the process responds."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """`GET /readyz`: 503 while draining. Before the models are loaded, uvicorn accepts no connections."""
    service: Service = request.state.service
    if not service.admission.is_ready:
        return JSONResponse({"status": "draining"}, 503)
    rejected = [name for name, served in service.models.items() if served.has_rejected]
    which = f" of {', '.join(rejected)}" if len(service.models) > 1 else ""
    warning = {"warning": f"The new model file{which} {_REJECTED}"} if rejected else {}
    return JSONResponse({"status": "ready", **warning})


async def ping(request: Request) -> Response:
    """`GET /ping`: SageMaker's health check."""
    return Response(status_code=200 if request.state.service.admission.is_ready else 503)


async def prometheus(request: Request) -> Response:
    """`GET /metrics`: metrics for Prometheus."""
    text = await request.state.service.metrics.rendering.get()
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def openapi_document(request: Request) -> Response:
    """`GET /openapi.json`: the OpenAPI document."""

    def make() -> Prepared:
        return Prepared(orjson.dumps(_document(request)), media_type="application/json")

    service: Service = request.state.service
    return service.prepared.get("openapi", make).respond(request)


async def documentation(request: Request) -> Response:
    """`GET /docs`: the OpenAPI document as a page."""

    def make() -> Prepared:
        page = docs.render(_document(request)).encode()
        return Prepared(page, media_type="text/html", headers=docs.HEADERS)

    service: Service = request.state.service
    return service.prepared.get("docs", make).respond(request)


def _document(request: Request) -> dict[str, Any]:
    service: Service = request.state.service
    models = [served.model for served in service.models.values()]
    return openapi.document(models, service.default.model, service.settings, open_paths=open_paths(request.app.routes))
