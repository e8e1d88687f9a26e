"""OpenTelemetry traces, as a collector receives them."""

import itertools
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from server import tracing
from tests.server.wire import COLOURS, encode, post, wait_until

PICTURE = encode(COLOURS["red"])
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector():
    """A receiver of OTLP over HTTP: its URL, and the spans that have come, with the name of their service."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra `otel`")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            batch = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in batch.resource_spans:
                (name,) = [
                    item.value.string_value for item in resource.resource.attributes if item.key == "service.name"
                ]
                spans.extend((name, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def attributes(span):
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


def test_a_request_is_a_span_of_the_clients_trace_with_its_stages(serve, model_path, collector):
    url, spans = collector
    settings = {tracing.VARIABLE: url, "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_SERVICE_NAME": "birds"}
    with serve(JAXCNN_MODEL=str(model_path), **settings) as server:
        headers = {"Content-Type": "image/png", "traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
        assert server.client.post("/predict", content=PICTURE, headers=headers).status_code == 200
        wait_until(lambda: len(spans) >= 4)
        assert {name for name, _ in spans} == {"birds"}
        (request,) = [span for _, span in spans if span.kind == span.SPAN_KIND_SERVER]
        assert (request.name, request.trace_id.hex(), request.parent_span_id.hex()) == ("POST /predict", TRACE, PARENT)
        assert attributes(request) == {
            "http.request.method": "POST",
            "http.route": "/predict",
            "http.response.status_code": 200,
            "url.path": "/predict",
            "jaxcnn.request_id": "mine",
        }
        assert abs(request.end_time_unix_nano / 1e9 - time.time()) < 30
        # The stages follow each other within the request.
        stages = sorted(
            (span for _, span in spans if span.parent_span_id == request.span_id),
            key=lambda span: span.start_time_unix_nano,
        )
        assert [stage.name for stage in stages] == ["queue", "decode", "inference"]
        bounds = [time for stage in stages for time in (stage.start_time_unix_nano, stage.end_time_unix_nano)]
        slack = 1_000_000  # The wall clock is read once for each.
        bounds = [request.start_time_unix_nano, *bounds, request.end_time_unix_nano]
        assert all(later > earlier - slack for earlier, later in itertools.pairwise(bounds))


def test_a_failure_of_the_server_is_an_error_and_the_last_spans_are_sent_at_the_end(serve, model_path, collector):
    url, spans = collector
    with serve(JAXCNN_MODEL=str(model_path), **{tracing.VARIABLE: url}) as server:
        assert post(server.client, encode((255, 255, 0))).status_code == 500
        assert post(server.client, b"no picture").status_code == 400
    found = [span for _, span in spans if span.kind == span.SPAN_KIND_SERVER]
    assert {attributes(span)["http.response.status_code"]: span.status.code for span in found} == {500: 2, 400: 0}
    assert {name for name, _ in spans} == {"jaxcnn"}


def test_a_collector_that_is_gone_holds_up_nothing(serve, model_path, collector):
    settings = {tracing.VARIABLE: "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serve(JAXCNN_MODEL=str(model_path), **settings) as server:
        for _ in range(5):
            assert post(server.client, PICTURE).status_code == 200
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert time.monotonic() - start < 6


def test_without_its_package_traces_are_off_and_the_log_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    assert tracing.start({}, "1") is None
    assert not caplog.records
    assert tracing.start({tracing.VARIABLE: "http://127.0.0.1:9"}, "1") is None
    assert "is set, but nothing is traced: install the packages with `pip install 'jaxcnn[otel]'`" in caplog.text
