"""Lets the disk fail under targets: `python -m tests.faults [TARGET ...] [--schedules N] [--first SEED]`.

Prints a line for each schedule that breaks a promise, and for each target one JSON object. `--first SEED --schedules 1`
repeats a schedule.
"""

import argparse
import faulthandler
import json
import os
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
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if "LD_PRELOAD" not in os.environ:
            os.environ["LD_PRELOAD"] = str(build(Path(name)))
            # The library has to be there before Python starts.
            sys.exit(os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.faults", *arguments]))
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        warnings.simplefilter("ignore")
        from tests.faults.targets import TARGETS

        targets = options.targets or TARGETS
        failures = sum(run(target, Path(name), options.first, options.schedules) for target in targets)
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
    counts = {"target": name, "operations": target.operations, "schedules": schedules, "failures": failures}
    print(json.dumps(counts), flush=True)
    return failures


if __name__ == "__main__":
    main(sys.argv[1:])
