"""Looks for a learning rate: `python -m jaxcnn.sweep [PRESET] --find_learning_rate STEPS`."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jaxcnn.data import check_outside_pictures
from jaxcnn.paths import check_output
from jaxcnn.terminal import stage
from jaxcnn.train import parse


@dataclass(frozen=True)
class RateSearch:
    """The command line of a learning rate range test.

    Attributes:
      training: arguments of the training whose rate is looked for, the preset first.
      workdir: folder for the plot.
      steps: steps of the test.
    """

    training: tuple[str, ...]
    workdir: Path
    steps: int


def find_learning_rate(search: RateSearch, *, prog: str) -> None:
    """Runs the learning rate range test, prints what it found and writes its plot.

    Args:
      search: the command line.
      prog: the command, which errors begin with.

    Raises:
      UserError: the training would be refused, the plot cannot be written, or the loss does not fall.
    """
    # Mistakes are reported before JAX is imported.
    parsed = parse([*search.training, "--workdir", str(search.workdir)])
    check_outside_pictures(search.workdir, parsed.config.data.source, option="workdir")
    page = search.workdir / "learning_rates.html"
    check_output(page, option="workdir")
    with stage("loading libraries"):
        from jaxcnn.ops.allocator import keep_freed_memory
        from jaxcnn.processes import ending_together, is_leader
        from jaxcnn.range_test import run_range_test
        from jaxcnn.run.range_page import write_range_page

    keep_freed_memory()
    with ending_together(prog):
        found = run_range_test(parsed.config, parsed.workdir, steps=search.steps)
        steepest, lowest = found.steepest, found.lowest
        if not is_leader():
            return
        write_range_page(found.rates, found.losses, steepest=steepest, lowest=lowest, path=page)
    Console(highlight=False).print(
        f"the loss falls fastest at a learning rate of {steepest:.2g} and is lowest at {lowest:.2g}; try "
        f"--over optim.learning_rate={steepest / 3:.2g},{steepest:.2g},{steepest * 3:.2g}\n{page}",
        soft_wrap=True,
        markup=False,
    )
