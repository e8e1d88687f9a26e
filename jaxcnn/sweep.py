"""Trains runs with several values of options and compares them: `python -m jaxcnn.sweep PRESET --over NAME=VALUES`."""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import statistics
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxcnn import cli, compare, options
from jaxcnn.config import Config
from jaxcnn.data import check_outside_pictures, is_named
from jaxcnn.errors import UserError
from jaxcnn.paths import check_output, named_path
from jaxcnn.presets import take_preset
from jaxcnn.rate_search import RateSearch, find_learning_rate
from jaxcnn.run.file_lock import lock_file
from jaxcnn.run.flat_settings import find_change
from jaxcnn.run.pool import Job, run_jobs
from jaxcnn.run.tracking import check_clients
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import console
from jaxcnn.train import Arguments
from jaxcnn.train import parse as parse_training
from jaxcnn.trials import IGNORED, RANGE, Choices, Range, Study, Trial, Words, check_optuna, read_range

PROG = "python -m jaxcnn.sweep"
HELP = f"""\
usage: {PROG} [PRESET] --over NAME=VALUES ... [OPTIONS] [OPTIONS OF TRAINING]

Trains one run for every combination of values, and compares them. The same command resumes the sweep:
finished runs are left as they are, unfinished ones resume. Finished runs with other settings are refused.

  --over NAME=VALUES ...       options of training with their values, such as
                               optim.learning_rate=.003,.01,.03 balance=on,off
  --trials N                   in place of all combinations, N that Optuna chooses for the best validation
                               top-1; VALUES may then be a range, such as optim.learning_rate=log:.001..1
  --seeds N                    runs of each combination, with the seeds 0 to N - 1 (default: 1)
  --jobs N                     runs at the same time (default: 1)
  --workdir DIR                folder of the workdirs (default: runs/sweep-PRESET)
  --output FILE                file for the comparison: .html, .md or .csv (default: DIR/comparison.html)
  --find_learning_rate STEPS   instead of runs: the range test of Smith 2017 in so many steps, as a plot,
                               DIR/learning_rates.html; of the options above, it takes --workdir

All other options are given to every run; see python -m jaxcnn.train PRESET --help
"""
LOCK = ".sweep.lock"
"""The file in the folder of a sweep that the sweep locks while it runs. A training locks its workdir by another."""


@dataclass(frozen=True)
class Sweep:
    """The command line of a sweep.

    Attributes:
      training: arguments of every training run, the preset first.
      over: values of options by their names, each value as words; a range only with trials.
      trials: combinations that Optuna chooses; None trains all.
      seeds: runs of each combination.
      jobs: runs at the same time.
      workdir: folder of the workdirs.
      output: file for the comparison.
    """

    training: tuple[str, ...]
    over: dict[str, Range | Choices]
    trials: int | None
    seeds: int
    jobs: int
    workdir: Path
    output: Path


def main(arguments: Sequence[str]) -> None:
    """Runs the sweep that the command line describes, or looks for a learning rate."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    asked = parse(arguments)
    if isinstance(asked, RateSearch):
        find_learning_rate(asked, prog=PROG)
    else:
        train_runs(asked)


def train_runs(sweep: Sweep) -> None:
    """Trains the runs of a sweep and compares them; exits with status 1 if a run failed."""
    check_runs(sweep)
    # A second sweep would fail at the runs of the first, and score its trials twice.
    with locked(sweep.workdir):
        jobs, failed = run_grid(sweep) if sweep.trials is None else run_trials(sweep)
    finished = [job.workdir for job in jobs if job.is_finished]
    if finished:
        compare.run(finished, sweep.output)
    if failed:
        for job, reason in failed.items():
            console.print(f"{job.workdir.name}: {reason}; {job.output} has all that it printed", soft_wrap=True)
        sys.exit(f"{PROG}: {len(failed)} of {len(jobs)} runs failed; run the same command again to resume them")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder of a sweep, and keeps other sweeps out of it until the context ends.

    Raises:
      UserError: another sweep runs in it, or it cannot be written or locked.
    """
    name, busy = f"the folder of the sweep, {folder},", f"another sweep is running in {folder}"
    lock = lock_file(folder / LOCK, name=name, busy=busy)
    try:
        yield
    finally:
        lock.release()


def check_runs(sweep: Sweep) -> None:
    """Raises a `UserError` if a run would be refused for options or folder, or is finished with other settings."""
    if sweep.trials is not None:
        check_optuna()
    # `list_jobs` leaves such characters out of the names of the folders in it.
    Workdir(sweep.workdir).check_path()
    for job in _list_examples(sweep):
        config = parse_training(job.arguments).config
        check_clients(config.log)
        check_outside_pictures(sweep.workdir, config.data.source, option="workdir")
        check_finished(job)


def _list_examples(sweep: Sweep) -> list[Job]:
    """Returns the runs of all combinations; the ends of a range stand for all of it."""
    over = {name: choice.ends if isinstance(choice, Range) else choice for name, choice in sweep.over.items()}
    return list_jobs(sweep, over)


def check_finished(job: Job) -> None:
    """Raises a `UserError` if a run is finished with other settings: it would be compared as if it had these."""
    if not job.is_finished:
        return
    folder = Workdir(job.workdir)
    recorded = dataclasses.replace(folder.read_config(), data=folder.read_data_config())
    if change := find_change(_with_full_source(recorded), folder.resolve(read_config(job)), ignored=IGNORED):
        raise UserError(f"{job.workdir} holds a finished run with {change}; give the same value, or another --workdir")


def read_config(job: Job) -> Config:
    """Returns the settings of a run as they are recorded, with the full path of its pictures."""
    return _with_full_source(parse_training(job.arguments).config.recorded())


def _with_full_source(config: Config) -> Config:
    source = config.data.source
    if not is_named(source):
        source = os.path.abspath(os.path.expanduser(source))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))


def run_grid(sweep: Sweep) -> tuple[list[Job], dict[Job, str]]:
    """Trains every combination; returns all runs, and why some failed."""
    jobs = list_jobs(sweep, {name: choice for name, choice in sweep.over.items() if not isinstance(choice, Range)})
    return jobs, run_jobs(jobs, at_once=sweep.jobs)


def run_trials(sweep: Sweep) -> tuple[list[Job], dict[Job, str]]:
    """Trains the combinations that Optuna chooses; returns the runs of all trials, and why some failed."""
    assert sweep.trials is not None
    config = read_config(_list_examples(sweep)[0])
    study = Study(sweep.workdir / "trials.db", sweep.over, config=config, seeds=sweep.seeds)

    def runs_of(trial: Trial) -> list[Job]:
        return list_jobs(sweep, {name: (words,) for name, words in trial.values.items()})

    failed: dict[Job, str] = {}
    for trials in study.propose(total=sweep.trials, at_once=sweep.jobs):
        proposed = [job for trial in trials for job in runs_of(trial)]
        for job in proposed:
            check_finished(job)
        failed |= run_jobs(proposed, at_once=sweep.jobs)
        # Trials with a failed run have no score, and are tried again by the same command.
        for trial in trials:
            runs = runs_of(trial)
            if all(job.is_finished for job in runs):
                top1 = statistics.fmean(read_top1(job.workdir) for job in runs)
                study.record(trial, top1)
                console.print(f"trial {trial.number + 1} of {sweep.trials}: top-1 {top1:.4f}", soft_wrap=True)
    scored = [(trial.score, trial) for trial in study.trials if trial.score is not None]
    if scored:
        top1, best = max(scored, key=lambda pair: pair[0])
        flags = " ".join(word for name, words in best.values.items() for word in spell(name, words))
        console.print(f"best of {len(scored)} trials: {flags}, with a top-1 of {top1:.4f}", soft_wrap=True)
    # A run that failed may be proposed again, and succeed then.
    failed = {job: reason for job, reason in failed.items() if not job.is_finished}
    return list(dict.fromkeys(job for trial in study.trials for job in runs_of(trial))), failed


def read_top1(workdir: Path) -> float:
    """Returns the validation top-1 of a finished run."""
    return float(json.loads(Workdir(workdir).evaluation.read_text(encoding="utf-8"))["top1"])


def parse(arguments: Sequence[str]) -> Sweep | RateSearch:
    """Reads the command line of a sweep, or of the range test that `--find_learning_rate` asks for in its place.

    Raises:
      UserError: an option has no value or a wrong one, or nothing is to be swept over.
    """
    preset, arguments = take_preset(arguments)
    parser = options.Parser(prog=PROG, add_help=False, allow_abbrev=False)
    parser.add_argument("--over", nargs="+", action="extend", default=[])
    for option in ("--seeds", "--jobs", "--trials", "--find_learning_rate", "--workdir", "--output"):
        parser.add_argument(option)
    given, training = parser.parse_known_args(options.with_underscores(arguments))
    if options.peek(training, "bucket", None) is not None:
        raise UserError("a sweep keeps no copy of its runs in a bucket; leave out --bucket")
    if "--dry_run" in training:
        raise UserError("a sweep trains its runs; leave out --dry_run")
    workdir = named_path(given.workdir or f"runs/sweep-{preset}", option="workdir")
    if given.find_learning_rate is not None:
        return _read_search(given, (preset, *training), workdir)
    return _read_sweep(given, (preset, *training), workdir)


def _read_search(given: argparse.Namespace, training: tuple[str, ...], workdir: Path) -> RateSearch:
    for option in ("over", "seeds", "trials", "jobs", "output"):
        if getattr(given, option):
            raise UserError(f"find_learning_rate trains no runs; leave out --{option}")
    steps = _read_count("find_learning_rate", given.find_learning_rate, least=10)
    return RateSearch(training, workdir, steps)


def _read_sweep(given: argparse.Namespace, training: tuple[str, ...], workdir: Path) -> Sweep:
    over = _read_over(given)
    output = named_path(given.output or str(workdir / "comparison.html"), option="output")
    if given.output:  # Else its folder is the workdir.
        check_output(output, endings=compare.ENDINGS)
    seeds = _read_count("seeds", given.seeds or "1", least=1)
    if not over and seeds == 1:
        raise UserError(f"there is nothing to sweep over; give --over NAME=VALUE,VALUE or --seeds; see {PROG} --help")
    return Sweep(
        training=training,
        over=over,
        trials=None if given.trials is None else _read_count("trials", given.trials, least=1),
        seeds=seeds,
        jobs=_read_count("jobs", given.jobs or "1", least=1),
        workdir=workdir,
        output=output,
    )


def _read_over(given: argparse.Namespace) -> dict[str, Range | Choices]:
    """Returns what to sweep over, by the name of the option."""
    if given.trials is not None and not given.over:
        raise UserError("trials needs something to choose from; give --over NAME=VALUES, too")
    over: dict[str, Range | Choices] = {}
    for text in given.over:
        name, equals, values = text.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        words = tuple(tuple(value.split()) for value in values.split(","))
        if not equals or not name or not all(words):
            raise UserError(f"over is {text!r}; give an option and its values, such as optim.learning_rate=.003,.01")
        if name in ("workdir", "bucket", "dry_run"):
            raise UserError(f"over names {name}, which is no setting of a run; leave it out")
        if name in over or (name == "seed" and given.seeds not in (None, "1")):
            rest = "twice; give it once" if name in over else "and --seeds is given too; leave one of them out"
            raise UserError(f"over names {name} {rest}")
        over[name] = words
        if found := RANGE.fullmatch(values):
            if given.trials is None:
                raise UserError(f"over has the range {text}; give --trials N, or values with commas between them")
            over[name] = read_range(name, found, whole=name in _whole_options())
    return over


def _whole_options() -> set[str]:
    """Returns the names of the options of a training that take whole numbers."""
    return {name for name, option in _find_options().items() if int in (option.kind, *typing.get_args(option.kind))}


@functools.cache
def _find_options() -> dict[str, options.Option]:
    """Returns the options of a training by their names; the defaults do not matter."""
    return {option.name: option for option in options.find_options(Arguments(Config(), Path()))}


def spell(name: str, words: Words) -> Words:
    """Returns an option and its value as words of the command line; a switch has the value `on` or `off`.

    Raises:
      UserError: a switch has another value.
    """
    option = _find_options().get(name)
    if option is None or option.kind is not bool:
        return (f"--{name}", *words)
    if words not in (("on",), ("off",)):
        raise UserError(f"over has {name}={' '.join(words)}; {name} is a switch: give on or off")
    return (f"--{name}" if words == ("on",) else option.flags[-1],)


def _read_count(name: str, text: str, *, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"{name} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def list_jobs(sweep: Sweep, over: Mapping[str, Choices]) -> list[Job]:
    """Returns a training run for every combination of values and seeds, each once; a workdir is named by its values.

    Raises:
      UserError: different runs would have the same workdir, or a switch a value other than on and off.
    """
    axes = dict(over)
    if sweep.seeds > 1:
        axes["seed"] = tuple((str(seed),) for seed in range(sweep.seeds))
    jobs: dict[Path, Job] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ",".join(f"{option.rpartition('.')[2]}={' '.join(words)}" for option, words in chosen.items())
        workdir = sweep.workdir / "".join("_" if character in "/*?[\\" else character for character in name)
        flags = [word for option, words in chosen.items() for word in spell(option, words)]
        job = Job(workdir, (*sweep.training, *flags, "--workdir", str(workdir)))
        if jobs.setdefault(workdir, job) != job:
            raise UserError(
                f"two runs would share the folder {workdir}; train them in two sweeps, each with a --workdir"
            )
    return list(jobs.values())


if __name__ == "__main__":
    cli.run(main, PROG)
