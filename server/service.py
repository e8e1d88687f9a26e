"""The state of a running server."""

from server.admission import Admission
from server.files import Signature
from server.log import LogWriter
from server.metrics import Metrics
from server.model import Model
from server.prepared import PreparedResponses
from server.settings import Settings
from server.workers import Workers


class Service:
    """Everything that a running server shares between requests.

    Attributes:
      settings: the settings.
      log: writes log lines.
      metrics: the counters for Prometheus.
      admission: bounds how many requests are accepted.
      workers: the threads that run the model.
      prepared: responses that are the same until the model changes.
      has_rejected: whether the model file was replaced by one that cannot be served.
      file_digest: signature and SHA-256 of the model file as last hashed.
    """

    file_digest: tuple[Signature, str]

    def __init__(self, settings: Settings, model: Model, log: LogWriter) -> None:
        self.settings = settings
        self.log = log
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.workers = Workers(model, settings, self.metrics)
        self.prepared = PreparedResponses()
        self.has_rejected = False
        self.serve(model)

    @property
    def model(self) -> Model:
        """The model that is served now."""
        return self.workers.model

    def serve(self, model: Model) -> None:
        """Serves another model from the next batch on; the running batches finish with the old one."""
        self.workers.model = model
        self.file_digest = model.signature, model.digest
        self.metrics.set_model(model)
        self.prepared.clear()
