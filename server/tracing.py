"""OpenTelemetry traces: a span for each request, with the stages of its batch below it, sent by OTLP over HTTP.

They are on only if OTEL_EXPORTER_OTLP_ENDPOINT is set. The SDK reads it, and OpenTelemetry's other variables.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""Where traces are sent."""

# How long the end of the process waits for a collector that does not respond.
_CLOSE_SECONDS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A part of a request's time, in seconds of the monotonic clock."""

    name: str
    start: float
    end: float


class Tracing:
    """Sends spans in the background; those that cannot be sent are lost."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("jaxcnn.server")

    def record(
        self, request: Stage, stages: Iterable[Stage], *, headers: Mapping[str, str], attributes: dict[str, str | int]
    ) -> None:
        """Records a finished request.

        Args:
          request: name and time of its span.
          stages: the spans below it.
          headers: its headers, of which `traceparent` may name the client's span.
          attributes: what else there is to say about it.
        """
        from opentelemetry import propagate, trace

        status = attributes["http.response.status_code"]
        span = self._tracer.start_span(
            request.name,
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            start_time=_wall_time(request.start),
        )
        inside = trace.set_span_in_context(span)
        for stage in stages:
            child = self._tracer.start_span(stage.name, context=inside, start_time=_wall_time(stage.start))
            child.end(_wall_time(stage.end))
        if isinstance(status, int) and status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(_wall_time(request.end))

    def close(self) -> None:
        """Sends what is left, unless that takes long."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)


def start(environment: Mapping[str, str], version: str) -> Tracing | None:
    """Starts the SDK if the operator has set `VARIABLE`; without its package, the log says what to install."""
    if not environment.get(VARIABLE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning(
            "%s is set, but nothing is traced: install the packages with `pip install 'jaxcnn[otel]'`", VARIABLE
        )
        return None
    resource = Resource.create({"service.version": version})
    # Unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES name the service.
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "jaxcnn"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _wall_time(seconds: float) -> int:
    """Returns a time of the monotonic clock as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - seconds) * 1e9)
