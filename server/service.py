"""What a running server holds."""

from server.admission import Admission
from server.files import Signature
from server.log import LogWriter
from server.metrics import Metrics
from server.model import Model
from server.settings import Settings
from server.workers import Workers


class Service:
    """The model, the threads it runs on, who is let in to it, and what is told about it.

    Attributes:
        seen: the model file as somebody last found it, by its signature and its digest.
    """

    seen: tuple[Signature, str]

    def __init__(self, settings: Settings, model: Model, log: LogWriter) -> None:
        self.settings = settings
        self.log = log
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.workers = Workers(model, settings, self.metrics)
        self.serve(model)

    @property
    def model(self) -> Model:
        """The model served now."""
        return self.workers.model

    def serve(self, model: Model) -> None:
        """Has everything after this moment done by another model; what runs is finished by the old one."""
        self.workers.model = model
        self.seen = model.signature, model.digest
        self.metrics.tell_model(model)
