"""Operations: metrics, logs, documentation, API keys, CORS and hot reload."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import openapi_spec_validator
import pytest
from jsonschema import Draft202012Validator
from ports import free_port

from server import openapi
from server.middleware.auth import OpenRoute, open_paths
from server.middleware.cors import Cors
from server.model import load
from server.routes import ROUTES
from server.settings import Settings
from tests.server.wire import COLOURS, YELLOW, encode, error, inherited, log_lines, post, samples, text, wait_until

ROOT = Path(__file__).parents[2]
PICTURE = encode(COLOURS["red"])


# Metrics


def test_requests_are_counted_by_route_and_status(client):
    before = samples(client)
    assert post(client, PICTURE).status_code == 200
    assert post(client, b"x").status_code == 400
    client.get("/v2/models/colours/versions/1")
    client.get("/v2/models/anything/versions/2")
    for path in ("/nothing/1", "/nothing/2"):
        client.get(path)
    client.request("PROPFIND", "/healthz")
    after = samples(client)
    for labels in (
        ("POST", "/predict", "200"),
        ("POST", "/predict", "400"),
        ("GET", "/v2/models/{name}/versions/{version}", "200"),
        ("GET", "/v2/models/{name}/versions/{version}", "404"),
        ("other", "/healthz", "405"),
    ):
        key = ("http_requests_total", *labels)
        assert after[key] == before.get(key, 0) + 1, key
    none = ("http_requests_total", "GET", "none", "404")
    assert after[none] == before.get(none, 0) + 2
    counted = ("http_request_duration_seconds_count", "POST", "/predict")
    assert after[counted] == before.get(counted, 0) + 2


def test_the_stages_of_a_request_are_measured(client):
    before = samples(client)
    pictures = [text(PICTURE)] * 3
    assert client.post("/predict", json={"images": pictures}).status_code == 200
    after = samples(client)
    for stage in ("decode", "inference", "encode"):
        key = ("jaxcnn_stage_duration_seconds_count", "colours", stage)
        assert after[key] == before[key] + 1
    assert after["jaxcnn_batch_size_sum", "colours"] == before["jaxcnn_batch_size_sum", "colours"] + 3
    assert (
        after["jaxcnn_queue_wait_seconds_count", "colours"] == before["jaxcnn_queue_wait_seconds_count", "colours"] + 1
    )
    assert after["jaxcnn_queue_depth", "colours"] == 0
    assert after["http_requests_in_progress",] == 1  # This request.
    assert {key[1:] for key in after if key[0] == "jaxcnn_shed_total"} == {
        ("colours", "requests"),
        ("colours", "bytes"),
        ("", "downloads"),
        ("colours", "deadline"),
        ("colours", "evicted"),
    }
    assert after["process_resident_memory_bytes",] > 1e7


def test_durations_have_opentelemetrys_buckets(client):
    post(client, PICTURE)
    line = r'^http_request_duration_seconds_bucket\{le="(.+?)",method="POST",route="/predict"\}'
    bounds = set(re.findall(line, client.get("/metrics").text, re.MULTILINE))
    expected = "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 +Inf"
    assert bounds == set(expected.split())


def test_metrics_name_the_model(client, model_path):
    (info,) = [key for key in samples(client) if key[0] == "jaxcnn_model_info"]
    assert "colours" in info
    assert "1.2" in info


# Logs and request ids


def test_each_request_is_a_line_of_json(server, client):
    response = post(client, PICTURE)
    (line,) = log_lines(server, request_id=response.headers["x-request-id"])
    assert re.fullmatch("[0-9a-f]{16}", line["request_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert 0 < line["duration_ms"] < 30_000
    assert {key: line[key] for key in ("level", "message", "client", "method", "path", "status")} == {
        "level": "info",
        "message": "request",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/predict",
        "status": 200,
    }


@pytest.mark.parametrize("request_id", ["a", "0f-3_A.b:c/d+e=", "x" * 128])
def test_a_request_id_of_the_client_is_kept(server, client, request_id):
    for path in ("/healthz", "/nothing"):
        assert client.get(path, headers={"X-Request-ID": request_id}).headers["x-request-id"] == request_id
    assert len(log_lines(server, request_id=request_id)) == 2


@pytest.mark.parametrize("request_id", ["", "x" * 129, 'a"b', "a b", "é", "a\tb"])
def test_an_id_unfit_for_a_log_is_replaced(client, request_id):
    response = client.get("/healthz", headers={"X-Request-ID": request_id.encode()})
    assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])


def test_a_path_cannot_forge_a_line(server, client):
    client.get('/%0a{"level":"error"}%22', headers={"X-Request-ID": "forger"})
    (line,) = log_lines(server, request_id="forger")
    assert line["path"] == '/\n{"level":"error"}"'


def test_of_a_long_path_the_log_has_the_beginning(server, client):
    client.get("/" + "é" * 1300, headers={"X-Request-ID": "long"})
    (line,) = log_lines(server, request_id="long")
    assert line["path"] == "/" + "é" * 999


def test_the_access_log_can_be_turned_off(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_ACCESS_LOG="off") as server:
        post(server.client, PICTURE)
        post(server.client, encode(YELLOW))
        log_lines(server, level="error")
        assert not [line for line in log_lines(server) if line["message"] == "request"]


# Documentation


def test_the_openapi_document_is_valid_and_complete(client):
    document = client.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    assert set(document["paths"]) == {
        "/predict",
        "/models/{name}/predict",
        "/invocations",
        "/ping",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        *(
            f"/v2/models/{{name}}{version}{rest}"
            for version in ("", "/versions/{version}")
            for rest in ("", "/ready", "/infer", "/config", "/stats")
        ),
    }


@pytest.mark.parametrize(
    ("path", "described", "required"),
    [
        ("/v2", "ServerMetadata", {"name", "version", "extensions"}),
        ("/v2/models/colours", "ModelMetadata", {"name", "versions", "platform", "inputs", "outputs"}),
        (
            "/v2/models/colours/config",
            "ModelConfiguration",
            {"name", "platform", "backend", "max_batch_size", "input", "output"},
        ),
        ("/v2/models/colours/stats", "ModelStatistics", {"model_stats"}),
        ("/v2/models/stats", "ModelStatistics", {"model_stats"}),
    ],
)
def test_the_openapi_document_describes_the_metadata(client, path, described, required):
    document = client.get("/openapi.json").json()
    operation = document["paths"][path.replace("colours", "{name}")]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": f"#/components/schemas/{described}"}
    content = client.get(path).json()
    Draft202012Validator(document | schema).validate(content)
    assert content.keys() == set(document["components"]["schemas"][described]["required"]) == required


@pytest.mark.parametrize("names", [["image"], ["images"], ["images", "images"], [], ["image", "images"]])
def test_the_openapi_document_describes_the_accepted_forms(client, names):
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Form"]
    form = {name: ["file"] * names.count(name) if name == "images" else "file" for name in names}
    response = client.post("/predict", files=[(name, PICTURE) for name in names or ["another"]])
    assert Draft202012Validator(schema).is_valid(form) == (response.status_code == 200)
    assert response.status_code in (200, 400)


@pytest.mark.parametrize(("file", "field"), [("image", "images"), ("images", "image")])
def test_the_openapi_document_refuses_forms_with_both_fields(client, file, field):
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Form"]
    form = {file: ["file"] if file == "images" else "file"}
    for value, is_valid in ((None, True), ("1", False)):
        fields = {} if value is None else {field: value}
        assert Draft202012Validator(schema).is_valid(form | fields) == is_valid
        assert (client.post("/predict", files=[(file, PICTURE)], data=fields).status_code == 200) == is_valid


@pytest.mark.parametrize("other", [{}, {"id": 1}, {"image": None}, {"images": None}, {"image": 1}, {"images": 1}])
@pytest.mark.parametrize("name", ["image", "images"])
def test_the_openapi_document_describes_the_accepted_json(client, name, other):
    document = client.get("/openapi.json").json()
    schema = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    content = other | {name: [text(PICTURE)] if name == "images" else text(PICTURE)}
    accepted = client.post("/predict", json=content).status_code == 200
    assert Draft202012Validator(document | schema).is_valid(content) == accepted
    assert accepted == (1 not in other.values() or name in other or "id" in other)


@pytest.mark.parametrize(("count", "expected"), [(2, 2), (3, 3), (5, 3)])
def test_the_openapi_document_bounds_top_k(model_path, count, expected):
    model = load(model_path, max_batch=1, threads=1)
    fewer = dataclasses.replace(model, names=model.names[:count])
    document = openapi.document([fewer], fewer, Settings(), open_paths=frozenset())
    top_k = document["paths"]["/predict"]["post"]["parameters"][0]
    assert top_k["schema"] == {"type": "integer", "minimum": 1, "maximum": count, "default": expected}


def test_the_documentation_is_a_page_without_scripts_or_other_hosts(client):
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "/v2/models/{name}/infer" in page.text
    assert not re.search("<script|http:|https:|src=", page.text)
    # The header says so, and lets browsers apply the style sheet by its digest alone.
    policy = page.headers["content-security-policy"]
    assert re.search("default-src 'none'.*frame-ancestors 'none'", policy)
    assert not re.search("unsafe|script-src", policy)
    style = re.search("<style>(.*?)</style>", page.text, re.DOTALL)[1]
    assert f"style-src 'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in policy


# SageMaker


def test_sagemakers_paths(client):
    ping = client.get("/ping")
    assert (ping.status_code, ping.content) == (200, b"")
    response = client.post("/invocations", content=PICTURE, headers={"Content-Type": "image/png"})
    assert response.json() == post(client, PICTURE).json()
    assert post(client, PICTURE, "application/x-image").json() == response.json()
    assert (
        client.post("/invocations?top_k=1", json={"images": [text(PICTURE)] * 2}).json()[1]["predicted_class"] == "red"
    )


# Heat maps


def test_a_heat_map_is_sent_on_request(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "seeing.onnx", heatmap=True)
    with serve(JAXCNN_MODEL=str(path)) as server:
        green = encode(COLOURS["green"])
        assert list(post(server.client, green).json()) == ["predicted_class", "top_predictions"]
        answer = post(server.client, green, params={"heatmap": "true"}).json()
        assert [len(row) for row in answer["heatmap"]] == [2] * 4
        assert answer["heatmap"][0][0] == pytest.approx(1)
        pair = {"images": [text(PICTURE), text(green)]}
        answers = server.client.post("/predict?heatmap=true", json=pair).json()
        assert [result["heatmap"][3][1] for result in answers] == pytest.approx([0, 1])


def test_a_heat_map_is_refused_if_the_model_has_none(client):
    assert error(post(client, PICTURE, params={"heatmap": "true"})).startswith("This model has no heat map")
    assert post(client, PICTURE, params={"heatmap": "1"}).status_code == 400
    assert post(client, PICTURE, params={"heatmap": "false"}).status_code == 200


# API keys and CORS


def test_all_but_health_and_the_page_need_a_key(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_API_KEYS="first-key-1, second-key") as server:
        client = server.client
        for headers in (
            {},
            {"Authorization": "Bearer first-key-2"},
            {"Authorization": "Basic first-key-1"},
            {"Authorization": "first-key-1"},
            {"X-API-Key": ""},
            {"X-API-Key": "first-key-1, second-key"},
            {"X-API-Key": "é".encode("latin-1")},
        ):
            for method, path in (("POST", "/predict"), ("GET", "/metrics"), ("GET", "/model.onnx"), ("GET", "/x")):
                response = client.request(method, path, headers=headers)
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
                error(response)
        of_a_proxy = {"Authorization": "Bearer of-another-system", "X-API-Key": "first-key-1"}
        for headers in ({"Authorization": "Bearer second-key"}, {"authorization": "bearer  first-key-1"}, of_a_proxy):
            response = client.post("/predict", content=PICTURE, headers={"Content-Type": "image/png", **headers})
            assert response.status_code == 200
        assert client.get("/v2/models/colours", headers={"X-API-Key": "first-key-1"}).status_code == 200
        for path in ("/healthz", "/readyz", "/ping", "/v2/health/ready", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        document = client.get("/openapi.json").json()
        openapi_spec_validator.validate(document)
        assert document["paths"]["/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}]
        assert "security" not in document["paths"]["/healthz"]["get"]
        assert "first-key" not in server.log.read_text()


def test_only_these_paths_need_no_key():
    assert open_paths(ROUTES) == {
        "/",
        "/page/{name}",
        "/onnxruntime-web/{name}",
        "/docs",
        "/openapi.json",
        "/healthz",
        "/readyz",
        "/ping",
        "/v2/health/live",
        "/v2/health/ready",
    }


def test_openapi_and_the_middleware_agree_on_which_routes_need_a_key(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_API_KEYS="some-key") as server:
        document = server.client.get("/openapi.json").json()
        assert document["paths"].keys() <= {route.path for route in ROUTES}
        for route in ROUTES:
            needs_key = not isinstance(route, OpenRoute)
            for method in {*route.methods, "PUT"}:
                response = server.client.request(method, route.path.format(name="colours", version="1"))
                assert (response.status_code == 401) == needs_key, (method, route.path)
            for operation in document["paths"].get(route.path, {}).values():
                assert ("security" in operation) == needs_key, route.path
                assert ("401" in operation["responses"]) == needs_key, route.path
        guarded = sum("security" in operation for path in document["paths"].values() for operation in path.values())
        assert server.client.get("/docs").text.count("Needs an API key.") == guarded > 0


def test_the_same_paths_need_a_key_below_a_root_path(serve, model_path):
    settings = {"JAXCNN_MODEL": str(model_path), "JAXCNN_API_KEYS": "some-key"}
    with serve(**settings, UVICORN_ROOT_PATH="/api") as server:
        for path in ("/healthz", "/readyz", "/ping", "/v2/health/ready", "/", "/page/page.js", "/docs"):
            assert server.client.get(path).status_code == 200, path
        for path in ("/metrics", "/model.onnx", "/api/healthz", "/apihealthz"):
            assert server.client.get(path).status_code == 401, path
        assert server.client.get("/metrics", headers={"X-API-Key": "some-key"}).status_code == 200


def test_only_the_origins_of_the_setting_are_allowed(serve, model_path):
    origin = "https://example.org"
    with serve(
        JAXCNN_MODEL=str(model_path), JAXCNN_CORS_ORIGINS=f"{origin},http://localhost:3000", JAXCNN_API_KEYS="some-key"
    ) as server:
        wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, x-api-key"}
        preflight = server.client.options("/predict", headers={"Origin": origin, **wanted})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        refused = server.client.options("/predict", headers={"Origin": "https://example.com", **wanted})
        assert refused.status_code == 400
        assert error(refused).startswith("Disallowed CORS origin: ")
        assert "Origin" in refused.headers["vary"]
        assert "access-control-allow-origin" not in refused.headers
        response = post_from(server.client, origin)
        assert response.headers["access-control-allow-origin"] == origin
        assert "X-Request-ID" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in post_from(server.client, "https://example.com").headers
        failed = post_from(server.client, origin, encode(YELLOW))
        assert (failed.status_code, failed.headers["access-control-allow-origin"]) == (500, origin)
        assert failed.headers["x-request-id"]


@pytest.mark.parametrize(
    "names", ["content-encoding,content-type", "inference-header-content-length", "traceparent,tracestate"]
)
def test_pages_may_send_the_headers_that_the_server_reads(names):
    async def send(message):
        sent.append(message)

    sent = []
    service = SimpleNamespace(settings=Settings(cors_origins=("https://example.org",)))
    headers = [
        (b"origin", b"https://example.org"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", names.encode()),
    ]
    scope = {"type": "http", "method": "OPTIONS", "path": "/predict", "headers": headers, "state": {"service": service}}
    asyncio.run(Cors(None)(scope, None, send))
    assert sent[0]["status"] == 200


def post_from(client: httpx.Client, origin: str, picture: bytes = PICTURE) -> httpx.Response:
    headers = {"Origin": origin, "X-API-Key": "some-key", "Content-Type": "image/png"}
    return client.post("/predict", content=picture, headers=headers)


def test_no_origin_is_allowed_by_default(client):
    assert "access-control-allow-origin" not in post_from(client, "https://example.org").headers


# Hot reload


def replace(path, new) -> None:
    """Replaces a file atomically."""
    temporary = path.with_name("temporary")
    shutil.copy(new, temporary)
    os.replace(temporary, path)


@pytest.fixture
def models(model_builder, tmp_path):
    """Files of a model, of one with other class names, and of a damaged one."""
    names = ["red", "green", "blue", "white", "black"]
    others = [f"{name}ish" for name in names]
    plain = model_builder(tmp_path / "plain")
    broken = tmp_path / "broken"
    broken.write_bytes(plain.read_bytes().replace(b"stretch", b"stre\xffch"))
    return {
        "plain": plain,
        "ish": model_builder(tmp_path / "ish", metadata={"names": others}),
        "broken": broken,
    }


def wait_until_predicted(client: httpx.Client, name: str) -> None:
    deadline = time.monotonic() + 30
    while post(client, PICTURE).json()["predicted_class"] != name:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.run
def test_a_new_model_is_served_under_load_and_a_damaged_one_is_not(serve, models, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(models["plain"], path)
    with serve(JAXCNN_MODEL=str(path), JAXCNN_RELOAD_SECONDS="1") as server:
        is_over, failed = threading.Event(), []
        clients = [threading.Thread(target=ask, args=(server.port, is_over, failed)) for _ in range(4)]
        for thread in clients:
            thread.start()
        try:
            wait_until_predicted(server.client, "red")
            replace(path, models["ish"])
            wait_until_predicted(server.client, "redish")
            replace(path, models["broken"])
            (line,) = log_lines(server, level="error")
            assert "it is damaged" in line["message"]
            assert post(server.client, PICTURE).json()["predicted_class"] == "redish"
            path.unlink()
            time.sleep(1.2)
            replace(path, models["plain"])
            wait_until_predicted(server.client, "red")
        finally:
            is_over.set()
            for thread in clients:
                thread.join()
        assert failed == []
        found = samples(server.client)
        assert found["jaxcnn_model_reloads_total", "served", "succeeded"] == 2
        assert found["jaxcnn_model_reloads_total", "served", "failed"] == 1
        assert sum(key[0] == "jaxcnn_model_info" for key in found) == 1


def ask(port: int, is_over: threading.Event, failed: list[object]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
        while not is_over.is_set():
            response = post(client, PICTURE)
            if response.status_code != 200 or response.json()["predicted_class"] not in ("red", "redish"):
                failed.append(response.text)


def test_hot_reload_is_off_by_default(serve, models, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(models["plain"], path)
    with serve(JAXCNN_MODEL=str(path)) as server:
        replace(path, models["ish"])
        time.sleep(1.5)
        assert post(server.client, PICTURE).json()["predicted_class"] == "red"


def test_only_the_served_file_may_be_cached(serve, models, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(models["plain"], path)
    with serve(JAXCNN_MODEL=str(path)) as server:
        digest = server.client.get("/model.json").json()["sha256"]
        assert server.client.get(f"/model.onnx?{digest}").headers["cache-control"].endswith("immutable")
        replace(path, models["ish"])
        response = server.client.get(f"/model.onnx?{digest}")
        assert response.status_code == 404
        assert error(response).startswith("The model file has been replaced")
        assert server.client.get("/model.onnx").headers["cache-control"] == "no-cache"
        path.unlink()
        assert server.client.get(f"/model.onnx?{digest}").status_code == 404


def test_a_file_of_the_same_content_counts_as_the_served_one(serve, models, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(models["plain"], path)
    with serve(JAXCNN_MODEL=str(path)) as server:
        digest = server.client.get("/model.json").json()["sha256"]
        for change in (path.touch, lambda: replace(path, models["plain"])):
            change()
            response = server.client.get(f"/model.onnx?{digest}")
            assert response.status_code == 200
            assert hashlib.sha256(response.content).hexdigest() == digest
            assert response.headers["cache-control"].endswith("immutable")


def test_the_page_can_be_turned_off(serve, model_path):
    with serve(JAXCNN_MODEL=str(model_path), JAXCNN_PAGE="off") as server:
        for path in ("/", "/page/page.js", "/model.json", "/model.onnx", "/onnxruntime-web/ort.wasm.min.mjs"):
            assert server.client.get(path).status_code == 404
        assert server.client.get("/docs").status_code == 200


# Several processes


@pytest.fixture
def two_workers(model_path, tmp_path):
    """Two processes on one port that share their metrics."""
    (tmp_path / "metrics").mkdir()
    port = free_port()
    settings = {
        "JAXCNN_MODEL": str(model_path),
        "JAXCNN_THREADS": "1",
        "JAXCNN_DRAIN_SECONDS": "0",
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
    }
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, env={**inherited(), **settings}, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


PROCESS_THAT_IS_KILLED = """
import os, signal
from server.metrics import Metrics

Metrics().in_progress.inc()
if (child := os.fork()) == 0:
    Metrics().in_progress.inc(10)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(Metrics().render().decode())
os.waitpid(child, 0)
print(Metrics().render().decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_killed_process_counts_in_no_gauge(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS_THAT_IS_KILLED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert re.findall(r"^http_requests_in_progress (.*)$", done.stdout, re.MULTILINE) == ["11.0", "1.0"]
    assert len([*tmp_path.glob("gauge_livesum_*.db")]) == 1


@pytest.mark.run
def test_metrics_of_several_processes_are_merged(two_workers, tmp_path):
    def ask(path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{two_workers}{path}", timeout=30, trust_env=False).text

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return re.search(r"^jaxcnn_model_info\{.*\} 2\.0$", ask("/metrics"), re.MULTILINE) is not None
        return False

    wait_until(is_ready)
    # New connections go to either process; both report all of them.
    for _ in range(30):
        ask("/healthz")
    for _ in range(6):
        text = ask("/metrics")
        assert 'http_requests_total{method="GET",route="/healthz",status="200"} 30.0' in text
        assert re.search(r"^http_requests_in_progress 1\.0$", text, re.MULTILINE)
    # A worker that is killed is replaced, and counts no longer.
    killed = next((tmp_path / "metrics").glob("gauge_livesum_*.db"))
    os.kill(int(killed.stem.rpartition("_")[2]), signal.SIGKILL)
    wait_until(lambda: is_ready() and not killed.exists())
