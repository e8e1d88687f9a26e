"""Trains a grid of runs and compares them: `python -m jaxcnn.sweep PRESET --over NAME=VALUE,VALUE --seeds 3`."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jaxcnn import cli, compare, options
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path
from jaxcnn.run.pool import Job, run_jobs
from jaxcnn.run.progress import console, stage
from jaxcnn.train import parse as parse_training

PROG = "python -m jaxcnn.sweep"
HELP = f"""\
usage: {PROG} [PRESET] --over NAME=VALUE,VALUE ... [OPTIONS] [OPTIONS OF TRAINING]

Trains one run for every combination of values, and compares them. The same command again goes on:
finished runs are not run again, unfinished ones resume.

  --over NAME=VALUE,VALUE ...  options of training with their values, such as
                               optim.learning_rate=.003,.01,.03 batch_size=32,64
  --seeds N                    runs of each combination, with the seeds 0 to N - 1 (default: 1)
  --jobs N                     runs at the same time (default: 1)
  --workdir DIR                folder of the workdirs (default: runs/sweep-PRESET)
  --output FILE                file for the comparison: .html, .md or .csv (default: DIR/comparison.html)
  --find_learning_rate STEPS   instead of runs: the range test of Smith 2017 in so many steps, as a plot,
                               DIR/learning_rates.html

All other options are given to every run; see python -m jaxcnn.train PRESET --help
"""


@dataclass(frozen=True)
class Sweep:
    """The command line of a sweep.

    Attributes:
      training: arguments of every training run, the preset first.
      over: values of options by their names, each value as words.
      seeds: runs of each combination.
      jobs: runs at the same time.
      workdir: folder of the workdirs.
      output: file for the comparison.
      find_learning_rate: steps of the range test; None trains the grid.
    """

    training: tuple[str, ...]
    over: dict[str, tuple[tuple[str, ...], ...]]
    seeds: int
    jobs: int
    workdir: Path
    output: Path
    find_learning_rate: int | None


def main(arguments: Sequence[str]) -> None:
    """Runs the sweep that the command line describes; exits with status 1 if a run failed."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    sweep = parse(arguments)
    if sweep.find_learning_rate is not None:
        find_learning_rate(sweep)
        return
    # All command lines are checked before the first run starts.
    jobs = list_jobs(sweep)
    for job in jobs:
        parse_training(job.arguments)
    failed = run_jobs(jobs, at_once=sweep.jobs)
    finished = [job.workdir for job in jobs if job.is_finished]
    if finished:
        compare.run(finished, sweep.output)
    if failed:
        for job, reason in failed.items():
            console.print(f"{job.workdir.name}: {reason}", soft_wrap=True)
        sys.exit(f"{PROG}: {len(failed)} of {len(jobs)} runs failed; run the same command again to go on with them")


def parse(arguments: Sequence[str]) -> Sweep:
    """Reads the command line of a sweep.

    Raises:
      UserError: an option has no value or a wrong one, or nothing is to be swept over.
    """
    preset = "digits"
    if arguments and not arguments[0].startswith("-"):
        preset, *arguments = arguments
    parser = options.Parser(prog=PROG, add_help=False, allow_abbrev=False)
    parser.add_argument("--over", nargs="+", action="extend", default=[])
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--jobs", default="1")
    for option in ("--find_learning_rate", "--workdir", "--output"):
        parser.add_argument(option)
    given, training = parser.parse_known_args(options.with_underscores(arguments))
    over = _read_values(given)
    workdir = named_path(given.workdir or f"runs/sweep-{preset}", option="workdir")
    output = named_path(given.output or str(workdir / "comparison.html"), option="output")
    compare.Arguments(output=output)  # Checks its ending.
    steps = given.find_learning_rate
    if steps is None and not over and given.seeds == "1":
        raise UserError(f"there is nothing to sweep over; give --over NAME=VALUE,VALUE or --seeds; see {PROG} --help")
    return Sweep(
        training=(preset, *training),
        over=over,
        seeds=_read_count("seeds", given.seeds, least=1),
        jobs=_read_count("jobs", given.jobs, least=1),
        workdir=workdir,
        output=output,
        find_learning_rate=None if steps is None else _read_count("find_learning_rate", steps, least=10),
    )


def _read_values(given: argparse.Namespace) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the values to sweep over, by the name of the option."""
    over: dict[str, tuple[tuple[str, ...], ...]] = {}
    for text in given.over:
        name, equals, values = text.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        words = tuple(tuple(value.split()) for value in values.split(","))
        if not equals or not name or not all(words):
            raise UserError(f"over is {text!r}; give an option and its values, such as optim.learning_rate=.003,.01")
        if name in over or (name == "seed" and given.seeds != "1"):
            raise UserError(f"over names {name} {'twice' if name in over else 'and seeds is given too'}; give it once")
        over[name] = words
    return over


def _read_count(name: str, text: str, *, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"{name} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def list_jobs(sweep: Sweep) -> list[Job]:
    """Returns a training run for every combination of values and seeds; a workdir is named by its values."""
    axes = dict(sweep.over)
    if sweep.seeds > 1:
        axes["seed"] = tuple((str(seed),) for seed in range(sweep.seeds))
    jobs = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ",".join(f"{option.rpartition('.')[2]}={' '.join(words)}" for option, words in chosen.items())
        workdir = sweep.workdir / "".join("_" if character in "/*?[\\" else character for character in name)
        flags = [word for option, words in chosen.items() for word in (f"--{option}", *words)]
        jobs.append(Job(workdir, (*sweep.training, *flags, "--workdir", str(workdir))))
    return jobs


def find_learning_rate(sweep: Sweep) -> None:
    """Runs the learning rate range test, prints what it found and writes its plot."""
    with stage("loading libraries"):
        from jaxcnn.ops.allocator import keep_freed_memory
        from jaxcnn.range_test import run_range_test
        from jaxcnn.run.range_page import write_range_page

    assert sweep.find_learning_rate is not None
    keep_freed_memory()
    parsed = parse_training([*sweep.training, "--workdir", str(sweep.workdir)])
    found = run_range_test(parsed.config, parsed.workdir, steps=sweep.find_learning_rate)
    page = sweep.workdir / "learning_rates.html"
    write_range_page(found.rates, found.losses, steepest=found.steepest, lowest=found.lowest, path=page)
    Console(highlight=False).print(
        f"the loss falls fastest at a learning rate of {found.steepest:.2g} and is lowest at {found.lowest:.2g}; try "
        f"--over optim.learning_rate={found.steepest / 3:.2g},{found.steepest:.2g},{found.steepest * 3:.2g}\n{page}",
        soft_wrap=True,
        markup=False,
    )


if __name__ == "__main__":
    cli.run(main, PROG)
