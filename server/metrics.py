"""Metrics for Prometheus."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from server.model import Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The buckets that OpenTelemetry's semantic conventions recommend for http.server.request.duration.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_STAGE_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REASONS = ("requests", "bytes", "deadline", "evicted")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Where processes share their metrics. prometheus_client reads this variable when it is imported, and keeps to that.
_SHARED_FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR")

REFUSALS = (400, 408, 501)
"""Statuses of requests that their connection refuses."""

NO_ROUTE = "none"
"""The `route` label of requests to unknown paths, so that clients cannot create label values."""


class SharedRendering:
    """Renders text once for all requests that wait for it, in another thread, for at most a tenth of the time."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._lock = asyncio.Lock()
        self._next: asyncio.Future[bytes] | None = None
        self._free_at = 0.0

    async def get(self) -> bytes:
        """Returns text that is not older than this call."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._render_next())
        return await asyncio.shield(self._next)

    async def _render_next(self) -> bytes:
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
            # Requests that arrive from now on need a later state.
            self._next = None
            start = time.monotonic()
            text = await asyncio.to_thread(self._render)
            self._free_at = time.monotonic() + 9 * (time.monotonic() - start)
            return text


class Metrics:
    """The metrics of one running server.

    Attributes:
      rendering: renders them for many requests at once; it takes 2 ms or more.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.rendering = SharedRendering(self.render)
        ProcessCollector(registry=registry)
        # HTTP
        self.requests = Counter(
            "http_requests_total", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Time from a request's headers to the end of its response.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_progress = _live_gauge("http_requests_in_progress", "Requests in progress.", registry)
        refused = Counter(
            "http_requests_refused_total",
            "Requests that their connection refused, as invalid, too large or too slow.",
            ["status"],
            registry=registry,
        )
        # All label values exist from the start, so that their rates do too.
        self._refused = {status: refused.labels(str(status)) for status in REFUSALS}
        self.by_model = _ByModel(registry)
        # It exists from the start, so that its rate does too; downloads belong to no model.
        self._shed_downloads = self.by_model.shed.labels("", "downloads")

    def shed_download(self) -> None:
        """Counts a download that was refused."""
        self._shed_downloads.inc()

    def refuse(self, status: int) -> None:
        """Counts a request that its connection refused; `status` is one of `REFUSALS`."""
        self._refused[status].inc()

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Records a finished request."""
        method = method if method in _METHODS else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.duration.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """Returns all metrics in Prometheus's text format: of this process, or of all that share them."""
        registry = self._registry
        if _SHARED_FOLDER:
            _forget_killed_processes(Path(_SHARED_FOLDER))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def close(self) -> None:
        """Takes this process out of the gauges that processes share."""
        if _SHARED_FOLDER:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


class _ByModel:
    """The metrics that have a label for the model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # The queue and the workers
        self.queue_depth = _live_gauge("jaxcnn_queue_depth", "Requests waiting for a worker thread.", registry, "model")
        self.queue_wait = Histogram(
            "jaxcnn_queue_wait_seconds",
            "Time of a request in the queue.",
            ["model"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "jaxcnn_batch_size",
            "Pictures per model run.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.stage = Histogram(
            "jaxcnn_stage_duration_seconds",
            "Time of a batch in each stage: decode, inference, encode.",
            ["model", "stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.shed = Counter(
            "jaxcnn_shed_total",
            "Requests refused with 503, by reason: too many requests, bytes or downloads, a deadline out of reach, or"
            " evicted for the requests of others.",
            ["model", "reason"],
            registry=registry,
        )
        # The models
        self.reloads = Counter(
            "jaxcnn_model_reloads_total",
            "New model files found, by result of loading.",
            ["model", "result"],
            registry=registry,
        )
        self.model_info = _live_gauge(
            "jaxcnn_model_info", "Processes that serve the model.", registry, "name", "version", "sha256", "classes"
        )


class ModelMetrics:
    """The metrics of one model, which have its name as the label `model`.

    Attributes:
      queue_depth: requests that wait for a worker thread.
      queue_wait: seconds of a request in the queue.
      batch_size: pictures per model run.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        families = metrics.by_model
        self.queue_depth = families.queue_depth.labels(name)
        self.queue_wait = families.queue_wait.labels(name)
        self.batch_size = families.batch_size.labels(name)
        # All label values exist from the start, so that their rates do too.
        self._stages = {stage: families.stage.labels(name, stage) for stage in ("decode", "inference", "encode")}
        self._shed = {reason: families.shed.labels(name, reason) for reason in _REASONS}
        self._reloads = {result: families.reloads.labels(name, result) for result in ("succeeded", "failed")}
        self._info = families.model_info
        self._info_labels: tuple[str, ...] | None = None

    def observe_stage(self, stage: str, start: float) -> float:
        """Records the time since `start`, a time of the monotonic clock, and returns the time now."""
        now = time.monotonic()
        self._stages[stage].observe(now - start)
        return now

    def shed(self, reason: str) -> None:
        """Counts a request that was refused with 503."""
        self._shed[reason].inc()

    def count_reload(self, result: str) -> None:
        """Counts a new file, by whether loading it `succeeded` or `failed`."""
        self._reloads[result].inc()

    def set_model(self, model: Model) -> None:
        """Records which file is served from now on."""
        if self._info_labels is not None:
            self._info.labels(*self._info_labels).set(0)
            # In files that processes share, prometheus_client cannot remove labels.
            if not _SHARED_FOLDER:
                self._info.remove(*self._info_labels)
        self._info_labels = (model.name, model.version, model.digest, str(len(model.names)))
        self._info.labels(*self._info_labels).set(1)

    def statistics(self) -> dict[str, tuple[float, float]]:
        """Returns count and sum in seconds for `queue`, `decode`, `inference` and `encode`; pictures for `batch`."""
        histograms = {"queue": self.queue_wait, "batch": self.batch_size, **self._stages}
        return {name: _count_and_sum(histogram) for name, histogram in histograms.items()}


def _live_gauge(name: str, text: str, registry: CollectorRegistry, *labels: str) -> Gauge:
    """Returns a gauge that is the sum over all processes that live."""
    return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")


def _count_and_sum(histogram: Histogram) -> tuple[float, float]:
    samples = {
        sample.name.rpartition("_")[2]: sample.value for found in histogram.collect() for sample in found.samples
    }
    return samples["count"], samples["sum"]


def _forget_killed_processes(folder: Path) -> None:
    """Takes processes that could not do it themselves out of the gauges that processes share."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not _exists(pid):
            # Another process may have done so at the same time.
            with suppress(FileNotFoundError):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _exists(pid: int) -> bool:
    """Whether there is such a process in this container; on Windows always."""
    # There, os.kill would end the process.
    if os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return True
