"""What Prometheus is told."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from server.model import Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# As OpenTelemetry recommends for the duration of HTTP requests.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_STAGE_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
NO_ROUTE = "none"
"""The route of requests to paths that do not exist: clients must not be able to make up label values."""


class Metrics:
    """The counters of one running server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "From the request's headers to the end of its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("http_requests_in_progress", "Requests being answered.", registry=registry)
        self.queue_depth = Gauge("jaxcnn_queue_depth", "Requests that wait for a thread.", registry=registry)
        self.queue_wait = Histogram(
            "jaxcnn_queue_wait_seconds", "How long they waited.", buckets=_STAGE_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "jaxcnn_batch_size", "Pictures classified at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._stage = Histogram(
            "jaxcnn_stage_duration_seconds",
            "Time of a batch in each stage: decode, inference, encode.",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.shed = Counter(
            "jaxcnn_shed_total",
            "Requests answered 503, because of too many requests, bytes, or a deadline sure to be missed.",
            ["reason"],
            registry=registry,
        )
        self.reloads = Counter(
            "jaxcnn_model_reloads_total",
            "New model files found, by whether they were good.",
            ["result"],
            registry=registry,
        )
        self._model_info = Gauge(
            "jaxcnn_model_info", "The model served.", ["name", "version", "sha256", "classes"], registry=registry
        )
        for reason in ("requests", "bytes", "deadline"):
            self.shed.labels(reason)
        self._stages = {each: self._stage.labels(each) for each in ("decode", "inference", "encode")}

    def observe_stage(self, stage: str, start: float) -> float:
        """Counts the time since `start`, by the monotonic clock, and returns the time now."""
        now = time.monotonic()
        self._stages[stage].observe(now - start)
        return now

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        method = method if method in _METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.duration.labels(method, route).observe(seconds)

    def tell_model(self, model: Model) -> None:
        """Tells which model is served from now on."""
        self._model_info.clear()
        self._model_info.labels(model.name, model.version, model.digest, str(len(model.names))).set(1)

    def render(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)
