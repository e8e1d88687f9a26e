"""Every path that the server answers, and whether it needs an API key: the one place that lists them."""

from starlette.routing import BaseRoute, Route

from server import demo, info, predictions
from server.middleware.auth import OpenRoute


def _model_routes(path: str) -> list[BaseRoute]:
    """Routes of one model in the Open Inference Protocol, below `path`."""
    return [
        Route(f"{path}/infer", predictions.infer, methods=["POST"]),
        Route(f"{path}/ready", info.v2_model_ready),
        Route(f"{path}/config", info.v2_model_config),
        Route(f"{path}/stats", info.v2_model_statistics),
        Route(path, info.v2_model),
    ]


# The router tries the routes in this order, so the most frequent come first.
ROUTES: list[BaseRoute] = [
    Route("/predict", predictions.predict, methods=["POST"]),
    Route("/models/{name}/predict", predictions.predict, methods=["POST"]),
    Route("/invocations", predictions.predict, methods=["POST"]),
    # Health
    OpenRoute("/healthz", info.healthz),
    OpenRoute("/readyz", info.readyz),
    OpenRoute("/ping", info.ping),
    Route("/metrics", info.prometheus),
    # The Open Inference Protocol
    Route("/v2", info.v2_server),
    OpenRoute("/v2/health/live", info.v2_live),
    OpenRoute("/v2/health/ready", info.v2_ready),
    Route("/v2/models/stats", info.v2_model_statistics),
    Route("/v2/repository/index", info.v2_repository_index, methods=["POST"]),
    *_model_routes("/v2/models/{name}"),
    *_model_routes("/v2/models/{name}/versions/{version}"),
    # Documentation
    OpenRoute("/openapi.json", info.openapi_document),
    OpenRoute("/docs", info.documentation),
    # The demo page; it asks its visitor for the key that the model needs.
    OpenRoute("/", demo.index),
    OpenRoute("/page/{name}", demo.page_file),
    OpenRoute("/onnxruntime-web/{name}", demo.runtime_file),
    Route("/model.json", demo.model_json),
    Route("/model.onnx", demo.model_file),
]
