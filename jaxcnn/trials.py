"""The search of a sweep: a study of Optuna on the disk, which proposes values of options from trial to trial."""

import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config import Config, from_json, to_json
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from jaxcnn.run.flat_settings import WITHOUT_EFFECT, find_change

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
RANGE = re.compile(rf"(?P<log>log:)?(?P<low>{NUMBER})\.\.(?P<high>{NUMBER})", re.IGNORECASE)
"""A range of numbers, such as `log:.001..1`."""
IGNORED = tuple(name for name in WITHOUT_EFFECT if name != "data.source")
"""Settings that may change while a sweep goes on. Its runs are compared, so that their pictures have to be the same."""

REMEDIES = {
    "SQLITE_FULL": "make room",
    # A full disk, too, where the system reserves room for a part of the file only.
    "SQLITE_IOERR": "make room, or check the disk,",
    "SQLITE_READONLY": "allow this user to read and write there",
    "SQLITE_CANTOPEN": "allow this user to read and write there",
    "SQLITE_BUSY": "end the program that locks it",
}
"""What to do about errors of SQLite."""

type Words = tuple[str, ...]
"""A value of an option as words of the command line."""


@dataclass(frozen=True)
class Range:
    """All numbers from one to another.

    Attributes:
      low: the smallest.
      high: the largest.
      whole: only whole numbers.
      log: drawn so that all powers of ten are equally likely.
    """

    low: float
    high: float
    whole: bool
    log: bool

    @property
    def ends(self) -> tuple[Words, Words]:
        """The smallest and the largest value."""
        return self.write(self.low), self.write(self.high)

    def write(self, value: float) -> Words:
        """Returns a value as the word of a command line; six digits are enough for all settings."""
        return (str(round(value)) if self.whole else f"{value:.6g}",)


type Choices = tuple[Words, ...]
"""Values of an option to choose from."""


def read_range(name: str, found: re.Match[str], *, whole: bool) -> Range:
    """Reads a range such as `0..1` or `log:.001..1`.

    Args:
      name: the option.
      found: a match of `RANGE`.
      whole: the option takes whole numbers.

    Raises:
      UserError: the range is empty, not positive though logarithmic, or not whole where the option is.
    """
    low, high, log = float(found["low"]), float(found["high"]), found["log"] is not None
    checks = {
        "must rise": low < high,
        "must be above 0, since it is logarithmic": low > 0 or not log,
        "must have whole ends, as its values": not whole or (low.is_integer() and high.is_integer()),
    }
    for rule, is_kept in checks.items():
        if not is_kept:
            raise UserError(f"over has the range {name}={found[0]}, which {rule}")
    return Range(low, high, whole, log)


def check_optuna() -> None:
    """Raises a `UserError` if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"trials needs the package optuna, which is not installed; run: {install_command('optuna')}")


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turns an error of SQLite, which Optuna and SQLAlchemy raise as another kind, into a `UserError`."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not hasattr(cause, "sqlite_errorname"):
            cause = cause.__cause__
        if cause is None or isinstance(error, UserError):
            raise
        # An error may have a longer name, such as SQLITE_IOERR_WRITE.
        found = (remedy for name, remedy in REMEDIES.items() if cause.sqlite_errorname.startswith(name))
        remedy = next((f"{remedy} and run the same command again" for remedy in found), "give another --workdir")
        raise UserError(f"{path} cannot be used as a study ({cause}); {remedy}") from error


class Trial(NamedTuple):
    """A proposal of Optuna.

    Attributes:
      number: its number in the study, from 0.
      values: of the options.
      score: what it achieved; None before it has ended.
    """

    number: int
    values: Mapping[str, Words]
    score: float | None


class Study:
    """A study that is kept in a file, so that it goes on after a kill.

    The tree-structured Parzen estimator (Bergstra et al. 2011) chooses the values, after ten random trials. It expects
    nothing good of trials that are not scored, because they run or have failed.
    """

    def __init__(self, path: Path, space: Mapping[str, Range | Choices], *, config: Config, seeds: int):
        """Opens a study, or creates it.

        Args:
          path: the file, a database of SQLite.
          space: what to choose from, by option.
          config: settings of all trials; those that are chosen have any of their values.
          seeds: runs of each trial.

        Raises:
          UserError: the study was begun with something else to choose from, other settings or another number of
            seeds, or the file is not a study.
        """
        import optuna

        self._space = space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            with database_errors(path):
                self._study = optuna.create_study(
                    storage=f"sqlite:///{path.absolute()}",
                    study_name="sweep",
                    direction="maximize",
                    load_if_exists=True,
                )
        except UserError:
            raise
        except Exception as error:  # A database of something else, or of another version of Optuna.
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{path} cannot be used as a study ({reason}); give another --workdir") from error
        with warnings.catch_warnings(), database_errors(path):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Another seed for every session: the same one would draw the same random trials again.
            self._study.sampler = optuna.samplers.TPESampler(seed=len(self._study.trials), constant_liar=True)
            self._check_begun(path, config, seeds=seeds)

    def _check_begun(self, path: Path, config: Config, *, seeds: int) -> None:
        """Records what a new study is begun with; raises a `UserError` if an earlier one was begun with another."""
        space = {name: repr(choice) for name, choice in self._space.items()}
        given = {"space": space, "seeds": seeds, "config": to_json(config)}
        begun = given | self._study.user_attrs
        # A study of an earlier version has only its space.
        for name in given.keys() - self._study.user_attrs.keys():
            self._study.set_user_attr(name, given[name])
        if begun["space"] != space:
            raise UserError(
                f"the trials in {path.parent} were begun with other values to choose from; give the same --over, or "
                "another --workdir"
            )
        change = find_change(from_json(begun["config"]), config, ignored=IGNORED)
        if begun["seeds"] != seeds:
            change = f"seeds {begun['seeds']}, not {seeds}"
        if change:
            raise UserError(
                f"the trials in {path.parent} were begun with {change}; give the same value, or another --workdir"
            )

    @property
    def trials(self) -> list[Trial]:
        """All trials so far."""
        # A kill while a trial is proposed leaves one without all of its values.
        with database_errors(self._path):
            trials = self._study.trials
        found = [trial for trial in trials if trial.params.keys() == self._space.keys()]
        return [self._read(trial) for trial in found]

    def propose(self, *, total: int, at_once: int) -> Iterator[list[Trial]]:
        """Yields trials to run, until there are so many in all: first, once, those that an earlier session left.

        Args:
          total: trials of the study.
          at_once: most trials that are yielded together; their scores are recorded before the next.

        Raises:
          UserError: the file cannot be read or written.
        """
        left = [trial for trial in self.trials if trial.score is None]
        for start in range(0, len(left), at_once):
            yield left[start : start + at_once]
        while (count := total - len(self.trials)) > 0:
            with database_errors(self._path):
                asked = [self._study.ask(self._distributions()) for _ in range(min(count, at_once))]
            yield [self._read(trial) for trial in asked]

    def record(self, trial: Trial, score: float) -> None:
        """Records what a trial achieved.

        Raises:
          UserError: the file cannot be written. The same command records it: the runs of the trial are finished.
        """
        with database_errors(self._path):
            self._study.tell(trial.number, score)

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        made: dict[str, Any] = {}
        for name, choice in self._space.items():
            if not isinstance(choice, Range):
                made[name] = CategoricalDistribution([" ".join(words) for words in choice])
            elif choice.whole:
                made[name] = IntDistribution(round(choice.low), round(choice.high), log=choice.log)
            else:
                made[name] = FloatDistribution(choice.low, choice.high, log=choice.log)
        return made

    def _read(self, trial: Any) -> Trial:
        """Returns a trial of Optuna as words of the command line."""
        values = {}
        for name, choice in self._space.items():
            value = trial.params[name]
            values[name] = choice.write(value) if isinstance(choice, Range) else tuple(value.split())
        return Trial(trial.number, values, getattr(trial, "value", None))
