"""Charts of a run, as SVG that follows the colours of the page around it, light or dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxcnn.metrics import CALIBRATION_BINS, Reliability

# matplotlib draws in these placeholder colours. `_to_svg` replaces them by variables that the page's CSS defines.
INK, MUTED, GRID, TRAIN, VALIDATION = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = {f"#0{number}0a0b": f"--series-{number}" for number in range(1, 9)}
"""The colours of several runs."""
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", TRAIN: "--train", VALIDATION: "--accent", **SERIES}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # Text stays text, in the page's font.
    "svg.hashsalt": "jaxcnn",  # Identifiers are the same each time.
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@dataclass(frozen=True)
class Curve:
    """A quantity over the epochs.

    Attributes:
      label: the quantity's name in the legend.
      color: a placeholder colour of this module.
      epochs: positions on the horizontal axis; may be fractions.
      values: one for each position.
    """

    label: str
    color: str
    epochs: Sequence[float]
    values: Sequence[float]


def draw_curves(
    curves: Sequence[Curve], *, percent: bool = False, marked: float | None = None, legend: bool = True
) -> str:
    """Draws curves over the epochs; short curves show their points.

    Args:
      curves: at least one, each with at least one point.
      percent: whether the values are shares, to be labelled in percent.
      marked: an epoch to mark with a vertical line.
      legend: whether to name the curves, if there are several.

    Returns:
      An `svg` element.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            marker = "o" if len(curve.values) <= 12 else None
            axes.plot(curve.epochs, curve.values, color=curve.color, label=curve.label, marker=marker, markersize=4)
        if marked is not None:
            axes.axvline(marked, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        # Few epochs may have ticks between them.
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=max(max(curve.epochs) for curve in curves) >= 4))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        if legend and len(curves) > 1:
            axes.legend()
        return _to_svg(figure)


def draw_rates(rates: Sequence[float], losses: Sequence[float], *, marked: float) -> str:
    """Draws losses over learning rates on a logarithmic axis, with one rate marked; returns an `svg` element."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, losses, color=VALIDATION)
        axes.axvline(marked, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        return _to_svg(figure)


def draw_reliability(reliability: Reliability) -> str:
    """Draws a reliability diagram: accuracy against confidence, and below it the share of the pictures in each bin."""
    width = 1 / CALIBRATION_BINS
    centers = (np.arange(CALIBRATION_BINS) + 0.5) * width
    with matplotlib.style.context(["default", STYLE]):
        # Bars of accuracy above, and how many pictures each bar stands for below.
        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        upper.bar(centers, np.nan_to_num(reliability.accuracy), width=0.88 * width, color=VALIDATION, alpha=0.8)
        upper.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        lower.bar(centers, reliability.count / reliability.count.sum(), width=0.88 * width, color=TRAIN)
        lower.set(xlabel="confidence", ylabel="pictures")
        lower.yaxis.set_major_locator(MaxNLocator(2))
        for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return _to_svg(figure)


def _to_svg(figure: Figure) -> str:
    """Returns the figure as an `svg` element with a transparent background and CSS variables for colours."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Charts share a page, where ids must not repeat.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
