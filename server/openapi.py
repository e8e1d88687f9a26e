"""The description of the HTTP interface as OpenAPI 3.1."""

from collections.abc import Iterable, Sequence, Set
from typing import Any

from server.model import Model
from server.protocols.open_inference import VERSION, server_version
from server.settings import Settings

type Json = dict[str, Any]

_ERRORS = {
    400: "The request is invalid.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or version.",
    408: "The body arrived too slowly.",
    413: "The body is too large, or has too many pictures.",
    415: "The content type is not supported, or the compression.",
    500: "The server failed; its log has the details under the request id.",
    503: "The server is busy, or the answer would be late.",
    504: "The answer took longer than the deadline.",
}
_DRAINING = "The server is about to shut down."
_REQUEST_ID = {"X-Request-ID": {"description": "Finds the request in the log.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
_RAW = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream")
"""Media types that are documented for a raw picture; any other `image/*` is accepted too."""
_FILE = {"type": "string", "format": "binary", "description": "The bytes of a picture file."}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""The two ways to send an API key."""


def document(models: Sequence[Model], default: Model, settings: Settings, *, open_paths: Set[str]) -> Json:
    """Returns the OpenAPI document, with the limits of the models and the settings in force.

    A path that has a model's name is described once for all models: what it accepts of one, another may refuse.

    Args:
      models: the models that are served.
      default: the one of these that answers requests which name none.
      settings: the settings of the server.
      open_paths: path templates that need no API key.
    """
    components: Json = {"schemas": _schemas(models, settings)}
    paths = {**_native_paths(models, default), **_open_inference_paths(models), **_operations_paths()}
    if settings.api_keys:
        components["securitySchemes"] = _KEYS
        for path in paths.keys() - open_paths:
            for operation in paths[path].values():
                operation["security"] = [{name: []} for name in _KEYS]
                operation["responses"] |= _failures(401)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"jaxcnn: {', '.join(model.name for model in models)}",
            "version": server_version(),
            "description": _INTRODUCTION,
        },
        "paths": paths,
        "components": components,
    }


_INTRODUCTION = (
    "Classifies pictures: JPEG, PNG, WebP, GIF or BMP files of any size within the limits. The body of every error is"
    ' {"error": "..."}, which says what is wrong and what to do. A request may set its own id in the header'
    " X-Request-ID; every response has one."
)


def _schemas(models: Sequence[Model], settings: Settings) -> Json:
    # Parts of the requests
    picture = {"type": "string", "format": "base64-picture", "contentEncoding": "base64"}
    several = {"type": "array", "minItems": 1, "maxItems": settings.max_images}
    absent, no_parts = {"type": "null"}, {"type": "array", "maxItems": 0}
    # Parts of the responses; in float32 a probability may exceed 1 by rounding.
    probability = {"type": "number", "minimum": 0, "maximum": 1.000001}
    prediction = _object({"class": {"type": "string"}, "prob": probability}, description="A class and its probability.")
    answer: Json = {
        "predicted_class": {"type": "string"},
        "top_predictions": {"type": "array", "minItems": 1, "items": prediction},
    }
    heatmap = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
    return {
        "Error": _object({"error": {"type": "string"}}),
        "Picture": _object({"image": picture}, optional={"images": absent}, description="One picture file."),
        "Pictures": _object({"images": {**several, "items": picture}}, optional={"image": absent}),
        "Form": {
            "description": "One file part named `image`, or one or more named `images`. A form has at most"
            f" {settings.max_images} parts, of whatever kind.",
            "oneOf": [
                _object({"image": _FILE}, optional={"images": no_parts}),
                _object({"images": {**several, "items": _FILE}}, optional={"image": no_parts}),
            ],
        },
        "Prediction": {**_object(answer), "properties": {**answer, "heatmap": heatmap}},
        "InferenceRequest": _inference_request(models, settings),
        "InferenceResponse": _inference_response(),
        **_metadata(),
    }


def _inference_request(models: Sequence[Model], settings: Settings) -> Json:
    flag = {"type": "boolean"}
    outputs = list(dict.fromkeys(name for model in models for name in model.outputs))
    output = _object({"name": {"enum": outputs}})
    count = {"type": "integer", "minimum": 0, "maximum": _most_classes(models)}
    output["properties"]["parameters"] = _optional({"binary_data": flag, "classification": count})
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": _optional({"binary_data_output": flag}),
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"oneOf": _tensors(models, settings)},
            },
            "outputs": {"type": "array", "maxItems": len(outputs), "items": output},
        },
    }


def _tensors(models: Sequence[Model], settings: Settings) -> list[Json]:
    """Returns the three kinds of input. That the data must fill the shape is more than a schema can express."""
    pictures: Json = {"type": "integer", "minimum": 1, "maximum": settings.max_images}
    heights, widths = _any_of(model.height for model in models), _any_of(model.width for model in models)
    pixels: list[Json] = [pictures, heights, widths, {"const": 3}]
    nested: Json = {"type": "array", "items": {}}
    text = {"type": "string", "format": "base64-picture"}
    level = {"minimum": 0, "maximum": 255}
    return [
        _tensor("Picture files, in base64 or binary.", "BYTES", [pictures, {"const": 1}], 1, {"anyOf": [text, nested]}),
        _tensor("Pixels from 0 to 255.", "UINT8", pixels, 4, {"anyOf": [{"type": "integer", **level}, nested]}),
        _tensor("Pixels from 0 to 255, rounded.", "FP32", pixels, 4, {"anyOf": [{"type": "number", **level}, nested]}),
    ]


def _tensor(description: str, datatype: str, shape: list[Json], rank: int, element: Json) -> Json:
    tensor = _object(
        {
            "name": {"const": "image"},
            "datatype": {"const": datatype},
            "shape": {"type": "array", "prefixItems": shape, "minItems": rank, "maxItems": len(shape)},
        },
        description=f"{description} Flat, or nested like the shape.",
    )
    tensor["properties"]["data"] = {"type": "array", "minItems": 1, "items": element}
    tensor["properties"]["parameters"] = _optional({"binary_data_size": {"type": "integer"}})
    return tensor


def _inference_response() -> Json:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"enum": ["FP32", "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array", "items": {"type": ["number", "string"]}},
            "parameters": _optional({"binary_data_size": {"type": "integer"}}),
        },
    }
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"const": VERSION},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": tensor},
        },
    }


def _metadata() -> Json:
    """Returns the schemas of what describes the server and its models in the Open Inference Protocol."""
    text: Json = {"type": "string"}
    count: Json = {"type": "integer", "minimum": 0}
    shape = {"type": "array", "items": {"type": "integer"}}
    tensor = _object({"name": text, "datatype": text, "shape": shape})
    configured = _object({"name": text, "data_type": text, "dims": shape})
    duration = _object({"count": count, "ns": count})
    durations = _object(dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output"), duration))
    counts = {"inference_count": count, "execution_count": count, "inference_stats": durations}
    statistics = _object({"name": text, "version": text, **counts})
    return {
        "ServerMetadata": _object({"name": text, "version": text, "extensions": _list(text)}),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                "inputs": _list(tensor),
                "outputs": _list(tensor),
            }
        ),
        "ModelConfiguration": _object(
            {
                "name": text,
                "platform": text,
                "backend": text,
                "max_batch_size": count,
                "input": _list(configured),
                "output": _list(configured),
            }
        ),
        "ModelStatistics": _object({"model_stats": _list(statistics)}),
        "RepositoryModel": _object({"name": text, "version": text, "state": text, "reason": text}),
    }


def _native_paths(models: Sequence[Model], default: Model) -> Json:
    predict = _predict([default])
    named = _predict(models)
    named["parameters"] = [*named["parameters"], _path_parameter("name", [model.name for model in models])]
    named["responses"] |= _failures(404)
    return {
        "/predict": {"post": {**predict, "operationId": "predict", "tags": ["Native"]}},
        "/models/{name}/predict": {"post": {**named, "operationId": "predict_model", "tags": ["Native"]}},
        "/invocations": {"post": {**predict, "operationId": "invocations", "tags": ["SageMaker"]}},
    }


def _predict(models: Sequence[Model]) -> Json:
    """Describes the classification by any of these models."""
    count = _most_classes(models)
    has_heatmap = any(model.has_heatmap for model in models)
    return {
        "summary": "Classify pictures",
        "description": "One picture gets one prediction; a list in `images` gets a list in the same order.",
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "How many classes to return.",
                "schema": {"type": "integer", "minimum": 1, "maximum": count, "default": min(3, count)},
            },
            {
                "name": "heatmap",
                "in": "query",
                "description": "Whether to return where the model looked: rows of numbers from 0 to 1.",
                "schema": {"type": "boolean", "default": False} if has_heatmap else {"const": False},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"oneOf": [_ref("Picture"), _ref("Pictures")]}},
                **{media_type: {"schema": _FILE} for media_type in _RAW},
                "multipart/form-data": {"schema": _ref("Form")},
            },
        },
        "responses": {
            **_success({"oneOf": [_ref("Prediction"), {"type": "array", "items": _ref("Prediction")}]}),
            **_failures(400, 408, 413, 415, 500, 503, 504),
        },
    }


def _open_inference_paths(models: Sequence[Model]) -> Json:
    # The server
    paths = {
        "/v2": _get("Server metadata", "v2_server", 200, schema=_ref("ServerMetadata")),
        "/v2/health/live": _get("Is the server alive?", "v2_live", 200),
        "/v2/health/ready": _get("Is the server ready?", "v2_ready", 200, 503),
    }
    statistics = _ref("ModelStatistics")
    paths["/v2/models/stats"] = _get("Statistics since the start", "v2_statistics", 200, schema=statistics)
    models_there = _list(_ref("RepositoryModel"))
    index = _get("The models that there are", "v2_repository_index", 200, schema=models_there)["get"]
    paths["/v2/repository/index"] = {"post": index}
    # The models, with and without a version in the path
    names = [model.name for model in models]
    for prefix, version in (("", []), ("/versions/{version}", [_path_parameter("version", [VERSION])])):
        path, suffix = f"/v2/models/{{name}}{prefix}", "_version" if prefix else ""
        parameters = [_path_parameter("name", names), *version]
        paths[path] = _get("Model metadata", f"v2_model{suffix}", 200, 404, schema=_ref("ModelMetadata"))
        paths[f"{path}/ready"] = _get("Is the model ready?", f"v2_model_ready{suffix}", 200, 404, 503)
        paths[f"{path}/config"] = _get(
            "Model configuration", f"v2_model_config{suffix}", 200, 404, schema=_ref("ModelConfiguration")
        )
        paths[f"{path}/stats"] = _get(
            "Statistics since the start", f"v2_model_statistics{suffix}", 200, 404, schema=statistics
        )
        paths[f"{path}/infer"] = {"post": _infer(f"v2_infer{suffix}")}
        for model_path in (path, *(f"{path}/{part}" for part in ("ready", "config", "stats", "infer"))):
            for operation in paths[model_path].values():
                operation["parameters"] = [*operation.get("parameters", []), *parameters]
    for operations in paths.values():
        for operation in operations.values():
            operation["tags"] = ["Open Inference Protocol"]
    return paths


def _infer(operation_id: str) -> Json:
    return {
        "summary": "Classify pictures",
        "operationId": operation_id,
        "description": "Supports the binary tensor data extension: binary data may follow the JSON text; the header"
        " Inference-Header-Content-Length is then the length of the JSON text.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("InferenceRequest")}}},
        "responses": {
            "200": {
                "description": "The outputs.",
                "headers": _REQUEST_ID,
                "content": {
                    "application/json": {"schema": _ref("InferenceResponse")},
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            },
            **_failures(400, 404, 408, 413, 415, 500, 503, 504),
        },
    }


def _operations_paths() -> Json:
    # /metrics and /ping do not respond in JSON.
    text = {"schema": {"type": "string"}}
    metrics = _get("Metrics for Prometheus", "metrics", 200)
    metrics["get"]["responses"]["200"]["content"] = {"text/plain": text}
    ping = _get("SageMaker's health check", "ping", 200)
    del ping["get"]["responses"]["200"]["content"]
    ping["get"]["responses"]["503"] = {"description": _DRAINING}
    return {
        "/healthz": _get("Is the process alive?", "healthz", 200),
        "/readyz": _get("Is the server ready for requests?", "readyz", 200, 503),
        "/ping": ping,
        "/metrics": metrics,
    }


def _get(summary: str, operation_id: str, *statuses: int, schema: Json | None = None) -> Json:
    responses = _success(schema or {"type": "object"})
    for status in statuses[1:]:
        # The 503 of a health check is a state, not an error.
        is_state = status == 503
        text = _DRAINING if is_state else _ERRORS[status]
        responses[str(status)] = _response(text, {"type": "object"} if is_state else _ref("Error"))
    return {"get": {"summary": summary, "operationId": operation_id, "tags": ["Operations"], "responses": responses}}


def _success(schema: Json) -> Json:
    return {"200": _response("Success.", schema)}


def _failures(*statuses: int) -> Json:
    failures = {str(status): _response(_ERRORS[status], _ref("Error")) for status in statuses}
    if "503" in failures:
        failures["503"]["headers"] = {**_REQUEST_ID, **_RETRY}
    return failures


def _response(description: str, schema: Json) -> Json:
    return {"description": description, "headers": _REQUEST_ID, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str, values: Sequence[str]) -> Json:
    schema: Json = {"type": "string"} if len(values) == 1 else {"type": "string", "enum": list(values)}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": values[0]}


def _most_classes(models: Iterable[Model]) -> int:
    return max(len(model.names) for model in models)


def _any_of(values: Iterable[int]) -> Json:
    """Returns the schema of a number that is one of these."""
    found = sorted(set(values))
    return {"const": found[0]} if len(found) == 1 else {"enum": found}


def _object(properties: Json, *, optional: Json | None = None, **extra: Any) -> Json:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties | (optional or {}),
        **extra,
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _optional(properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
