"""The state of a running server, and of each model in it."""

from collections.abc import Iterable
from pathlib import Path

from server import model
from server.admission import Admission, Places
from server.decode_memory import DecodeMemory
from server.digests import Digests
from server.log import LogWriter
from server.metrics import Metrics, ModelMetrics
from server.model import Model
from server.prepared import PreparedResponses
from server.settings import Settings
from server.tracing import Tracing
from server.workers import Workers


def load(name: str, path: Path, settings: Settings) -> Model:
    """Loads a model as the settings say.

    Raises:
      StartError: it cannot be served.
    """
    return model.load(
        path,
        name=name,
        sha256=settings.model[name].sha256,
        max_batch=settings.max_batch,
        threads=settings.threads,
        execution_provider=settings.execution_provider,
    )


class ServedModel:
    """One model of a running server.

    Attributes:
      name: what requests call it.
      metrics: its counters.
      places: bounds how many requests to it are accepted.
      workers: the threads that run it.
      has_rejected: whether its file was replaced by one that cannot be served.
    """

    def __init__(self, model: Model, metrics: ModelMetrics, workers: Workers, places: Places) -> None:
        self.name = model.name
        self.metrics = metrics
        self.places = places
        self.workers = workers
        self.has_rejected = False
        self.serve(model)

    @property
    def model(self) -> Model:
        """The model as it is served now."""
        return self.workers.model

    def serve(self, model: Model) -> None:
        """Serves another file from the next batch on; the running batches finish with the old one."""
        self.workers.model = model
        self.metrics.set_model(model)


class Service:
    """Everything that a running server shares between requests.

    Attributes:
      settings: the settings.
      log: writes log lines.
      tracing: sends traces; None if they are off.
      metrics: the counters for Prometheus.
      admission: bounds what all models share.
      models: the models by name.
      default: the model that answers requests which name none.
      prepared: responses that are the same until a model changes.
      digests: the SHA-256 of files that browsers keep.
    """

    def __init__(
        self, settings: Settings, models: Iterable[Model], log: LogWriter, tracing: Tracing | None = None
    ) -> None:
        self.settings = settings
        self.log = log
        self.tracing = tracing
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.prepared = PreparedResponses()
        self.digests = Digests()
        memory = DecodeMemory(settings.max_decode_bytes)
        self.models = {model.name: self._start(model, memory) for model in models}
        self.default = self.models[settings.default_model or next(iter(self.models))]

    def _start(self, model: Model, memory: DecodeMemory) -> ServedModel:
        self.digests.note(model)
        metrics = ModelMetrics(self.metrics, model.name)
        workers = Workers(model, self.settings, metrics, memory)
        return ServedModel(model, metrics, workers, Places(self.admission, self.settings, metrics))

    def serve(self, model: Model) -> None:
        """Serves another file of a model from its next batch on."""
        self.models[model.name].serve(model)
        self.digests.note(model)
        self.prepared.clear()

    def close(self) -> None:
        """Waits for all wanted answers, then ends the threads."""
        for served in self.models.values():
            served.workers.close()
        self.metrics.close()
        if self.tracing:
            self.tracing.close()
