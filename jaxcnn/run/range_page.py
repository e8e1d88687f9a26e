"""The plot of a learning rate range test, as a page without network."""

from collections.abc import Sequence
from pathlib import Path

from jaxcnn.disk import write_atomically
from jaxcnn.run.charts import draw_rates

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Learning rate range test</title>
<style>
:root {{ --ground: #ffffff; --ink: #16181d; --muted: #626a76; --line: #dfe2e7; --accent: #2563eb; --train: #d98a00; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #121417; --ink: #e8eaed; --muted: #9aa3af; --line: #30353d; --accent: #6aa3ff; --train: #f0b429; }}
}}
body {{ margin: 0 auto; padding: 2rem; max-width: 50rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
svg {{ display: block; width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Learning rate range test</h1>
<p>The learning rate rises from step to step (Smith 2017). The loss on augmented training pictures, smoothed, falls
fastest at {steepest:.2g}, which the line marks, and is lowest at {lowest:.2g}.</p>
{svg}
</body>
</html>
"""


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
    svg = draw_rates(rates, losses, marked=steepest)
    write_atomically(path, PAGE.format(steepest=steepest, lowest=lowest, svg=svg))
