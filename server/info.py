"""The endpoints that tell of the server and its model."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from server import docs, metrics, openapi
from server.model import Model
from server.protocols import open_inference
from server.service import Service


def require_model(request: Request) -> Model:
    """The model, if it is the one in the path.

    Raises:
        HTTPException: 404, it is not.
    """
    service: Service = request.state.service
    name = request.path_params["name"]
    version = request.path_params.get("version", open_inference.VERSION)
    if name != service.model.name:
        raise HTTPException(404, f"There is no model of this name: the one served is {service.model.name!r}.")
    if version != open_inference.VERSION:
        raise HTTPException(404, f"There is no such version: the one served is {open_inference.VERSION!r}.")
    return service.model


async def v2_server(request: Request) -> Response:
    """`GET /v2`."""
    return JSONResponse(open_inference.server_metadata())


async def v2_live(request: Request) -> Response:
    """`GET /v2/health/live`."""
    return JSONResponse({"live": True})


async def v2_ready(request: Request) -> Response:
    """`GET /v2/health/ready`: `live` and `ready`, as some clients read the one and some the other."""
    is_ready = request.state.service.admission.is_ready
    return JSONResponse({"live": True, "ready": is_ready}, 200 if is_ready else 503)


async def v2_model(request: Request) -> Response:
    """`GET /v2/models/NAME`."""
    return JSONResponse(open_inference.model_metadata(require_model(request)))


async def v2_model_ready(request: Request) -> Response:
    """`GET /v2/models/NAME/ready`."""
    name = require_model(request).name
    is_ready = request.state.service.admission.is_ready
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


async def healthz(request: Request) -> Response:
    """`GET /healthz`: the process answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """`GET /readyz`: the model is loaded (until it is, uvicorn takes no connection) and the end is not near."""
    if request.state.service.admission.is_ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "draining"}, 503)


async def ping(request: Request) -> Response:
    """`GET /ping`: SageMaker's health check."""
    return Response(status_code=200 if request.state.service.admission.is_ready else 503)


async def prometheus(request: Request) -> Response:
    """`GET /metrics`."""
    return Response(request.state.service.metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def openapi_document(request: Request) -> Response:
    """`GET /openapi.json`."""
    service: Service = request.state.service
    return JSONResponse(openapi.document(service.model, service.settings))


async def documentation(request: Request) -> Response:
    """`GET /docs`."""
    service: Service = request.state.service
    return HTMLResponse(docs.render(openapi.document(service.model, service.settings)))
