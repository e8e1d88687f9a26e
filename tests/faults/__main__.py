"""Lets the disk fail under targets: `python -m tests.faults [TARGET ...] [--schedules N] [--first SEED]`.

Prints a line for each schedule that breaks a promise, and for each target one JSON object. `--first SEED --schedules 1`
repeats a schedule.
"""

import argparse
import faulthandler
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.faults.injection import build

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""A schedule that takes longer hangs."""


def main(arguments: Sequence[str]) -> None:
    """Runs the schedules; exits with status 1 if one breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="what to run; by default everything")
    parser.add_argument("--schedules", type=int, default=100, help="faults for each target")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    options = parser.parse_args(arguments)
    if "LD_PRELOAD" not in os.environ:
        # The library has to be there before Python starts.
        os.environ["LD_PRELOAD"] = str(build(Path(tempfile.mkdtemp(prefix="faults-"))))
        os.execv(sys.executable, [sys.executable, "-m", "tests.faults", *arguments])
    folder = Path(os.environ["LD_PRELOAD"]).parent
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    warnings.simplefilter("ignore")
    from tests.faults.targets import TARGETS

    try:
        if unknown := [name for name in options.targets if name not in TARGETS]:
            parser.error(f"there is no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
        failures = sum(run(name, folder, options.first, options.schedules) for name in options.targets or TARGETS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if failures else 0)


def run(name: str, folder: Path, first: int, schedules: int) -> int:
    """Runs the schedules of a target, and returns how many break a promise."""
    from tests.faults.schedules import Schedules
    from tests.faults.targets import make_target

    failures = 0
    place = folder / name
    place.mkdir()
    target = Schedules(make_target(name), place)
    for seed in range(first, first + schedules):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        problem = target.run(seed)
        faulthandler.cancel_dump_traceback_later()
        if problem:
            failures += 1
            print(f"{name}, seed {seed}: {problem}", flush=True)
    counts = {"target": name, "operations": target.operations, "schedules": schedules, "missed": target.missed}
    counts["failures"] = failures
    print(json.dumps(counts), flush=True)
    return failures


if __name__ == "__main__":
    main(sys.argv[1:])
