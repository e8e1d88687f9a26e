"""The plot of a learning rate range test, as a page without network."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from jaxcnn.disk import write_atomically
from jaxcnn.run.charts import draw_rates
from jaxcnn.run.page import render_page


def write_range_page(
    rates: Sequence[float], losses: Sequence[float], *, steepest: float, lowest: float, path: Path
) -> None:
    """Writes the page.

    Args:
      rates: learning rate of each step.
      losses: smoothed loss of each step in nats.
      steepest: the rate at which the loss falls fastest.
      lowest: the rate at which the loss is lowest.
      path: the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    chart = Markup(draw_rates(rates, losses, marked=steepest))  # noqa: S704 drawn here
    write_atomically(path, render_page("range_test.html", steepest=steepest, lowest=lowest, chart=chart))
