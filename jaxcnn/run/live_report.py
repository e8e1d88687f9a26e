"""The report of a run that goes on: its settings and learning curves, renewed from time to time."""

import time
from pathlib import Path

from jaxcnn.data import Dataset
from jaxcnn.disk import write_atomically
from jaxcnn.run.earlier_trainings import read_earlier
from jaxcnn.run.metrics_log import Record, ValidationRecord, read_log
from jaxcnn.run.sessions import read_sessions
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import warn

RENEW_SECONDS = 60.0
"""Least time between two pages; a run that ends sooner has none before its report."""
SHARE = 0.01
"""Largest share of the time of a run that its pages may take."""


class LiveReport:
    """Writes `report.html` after epochs, until the report of the finished run takes its place."""

    def __init__(self, workdir: Path, dataset: Dataset):
        self._workdir = Workdir(workdir)
        self._dataset = dataset
        self._due = time.monotonic() + RENEW_SECONDS

    def note(self, record: Record) -> None:
        """Takes notice of a record of the run; renews the page after an evaluation, if it is time."""
        if not isinstance(record, ValidationRecord) or time.monotonic() < self._due:
            return
        started = time.monotonic()
        try:
            write_atomically(self._workdir.path / "report.html", self.render())
        except Exception as error:  # Whatever is wrong with the page, the run itself can go on.
            warn(f"the report cannot be renewed: {error}")
        ended = time.monotonic()
        self._due = ended + max(RENEW_SECONDS, (ended - started) / SHARE)

    def render(self) -> str:
        """Returns the page as HTML."""
        # matplotlib takes long to import, and short runs have no such page.
        from jaxcnn.run.page import render_page
        from jaxcnn.run.report import describe_run, draw_log

        log, sessions = read_log(self._workdir.metrics), read_sessions(self._workdir)
        earlier = read_earlier(self._workdir.earlier_trainings)
        return render_page(
            "live_report.html",
            dataset=self._dataset,
            best=log.best,
            last=log.validation[-1],
            epochs=sessions[-1].config.epochs,
            refresh=round(RENEW_SECONDS),
            facts=describe_run(sessions, log, self._dataset, earlier=earlier, is_over=False),
            charts=draw_log(log, best=log.best),
            note=self._workdir.read_note(),
        )
