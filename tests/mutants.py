"""Mutation testing: `python -m tests.mutants MODULE ... [--count N] [--seed SEED] [--results FILE]`.

It needs mutmut: `pip install mutmut==3.8.1`. Operators of mutmut change a module in one place at a time, and some test
of the module has to fail then. All of mutmut's operators are used but the one that changes the text of strings, most of
which are messages. mutmut's own runner leaves out decorated functions, and forks a process in which JAX has started
threads. Here a process forks that has imported the libraries, but nothing of this repository, and the tests run in a
copy of it.

A score is the share of the mutants that a test finds, that cannot be imported, or that keep the tests from ending.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

TESTS = {
    "server/body.py": ["tests/server/test_server_body.py"],
    "server/admission.py": ["tests/server/test_server_admission.py"],
    "server/drain.py": ["tests/server/test_server_drain.py"],
    "server/connection.py": ["tests/server/test_server_connection_memory.py"],
    "server/workers.py": ["tests/server/test_server_workers.py"],
    "jaxcnn/data/split.py": ["tests/data/test_split.py", "tests/data/test_dataset.py"],
    "jaxcnn/state.py": ["tests/test_state.py"],
    "jaxcnn/step.py": ["tests/test_exact_step.py", "tests/test_step.py"],
    "jaxcnn/run/checkpoint.py": ["tests/run/test_checkpoint.py"],
    "jaxcnn/run/checkpoint_reading.py": ["tests/run/test_checkpoint.py"],
}
"""The fastest tests that cover a module."""

LIBRARIES = (
    *("numpy", "scipy", "PIL.Image", "jax", "jax.numpy", "flax.linen", "optax", "orbax.checkpoint"),
    *("onnx", "onnxruntime", "sklearn.linear_model", "httpx", "uvicorn", "starlette.responses", "prometheus_client"),
)
"""What takes long to import, and starts no threads."""

DURATIONS = "durations.json"
OUTCOMES = {0: "survived", 99: "not imported"}
"""Outcomes by the exit status of the tests; with any other, a test has failed."""


@dataclass(frozen=True)
class Mutant:
    """A change of a module in one place.

    Attributes:
      line: where it is.
      before: what the line said.
      after: what it says instead.
      source: the changed module.
    """

    line: int
    before: str
    after: str
    source: str


def main(arguments: Sequence[str]) -> None:
    """Tries mutants of modules, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", choices=TESTS, help="what to change")
    parser.add_argument("--count", type=int, default=60, help="mutants of each module, chosen at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    parser.add_argument("--results", type=Path, help="file of results, in which the command goes on")
    options = parser.parse_args(arguments)
    try:
        importlib.import_module("mutmut.mutation.mutators")
    except ImportError:
        sys.exit("python -m tests.mutants: mutmut is missing; run pip install mutmut==3.8.1")
    # `timeout` and Ctrl-C end a run between two mutants or within one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for library in LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "copy"
        copy_repository(copy)
        for module in options.modules:
            try_module(module, copy, options)


def copy_repository(folder: Path) -> None:
    """Copies all files but those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def try_module(module: str, copy: Path, options: argparse.Namespace) -> None:
    """Tries mutants of one module; each result is a line of the file of results."""
    source = (ROOT / module).read_text()
    total = sum(1 for _ in find_changes(source))
    chosen = random.Random(options.seed).sample(range(total), min(options.count or total, total))
    known = read_results(options.results, module, digest(source))
    results = [known[number] for number in chosen if number in known]
    if len(results) < len(chosen):
        # The first run finds out which tests are fast, the second takes the order that mutants get.
        (copy.parent / DURATIONS).unlink(missing_ok=True)
        for _ in range(2):
            outcome, seconds = run_tests(copy, TESTS[module], limit=600)
            if outcome != "survived":
                print((copy / "mutants.log").read_text()[-3000:])
                sys.exit(
                    f"python -m tests.mutants: {module} is unchanged, and its tests fail: {' '.join(TESTS[module])}"
                )
        print(f"{module}: {len(chosen)} of {total} mutants, {seconds:.1f} s", flush=True)
    for number in chosen:
        if number in known:
            continue
        mutant = make_mutant(source, number)
        write_module(copy / module, mutant.source)
        outcome, taken = run_tests(copy, TESTS[module], limit=20 + 5 * seconds)
        described = {name: value for name, value in dataclasses.asdict(mutant).items() if name != "source"}
        results.append(
            {"module": module, "source": digest(source), "number": number, **described, "outcome": outcome}
            | {"seconds": round(taken, 1)}
        )
        print(
            f"{len(results)}/{len(chosen)} {outcome} {module}:{mutant.line}: {mutant.before} -> {mutant.after}",
            flush=True,
        )
        if options.results:
            with options.results.open("a") as stream:
                stream.write(json.dumps(results[-1]) + "\n")
    write_module(copy / module, source)
    counts = Counter(result["outcome"] for result in results)
    score = 1 - counts["survived"] / len(results)
    print(
        f"{module}: total {total}, tried {len(results)}, killed {counts['killed']}, not imported"
        f" {counts['not imported']}, timed out {counts['timed out']}, survived {counts['survived']}: {score:.1%}",
        flush=True,
    )


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def read_results(path: Path | None, module: str, source: str) -> dict[int, dict[str, Any]]:
    """Returns the results so far by the number of the mutant, but for results of other versions."""
    if path is None or not path.exists():
        return {}
    results = [json.loads(line) for line in path.read_text().splitlines()]
    return {found["number"]: found for found in results if (found["module"], found.get("source")) == (module, source)}


def write_module(path: Path, source: str) -> None:
    """Writes a module, with a time that no compiled file of it has."""
    modified = int(path.stat().st_mtime) + 2
    path.write_text(source)
    os.utime(path, (modified, modified))


# Mutants


def find_changes(source: str) -> Iterator[tuple[Any, Any, Any]]:
    """Yields the tree of a module, a node, and what replaces it, for every mutant."""
    import libcst
    from libcst.metadata import MetadataWrapper
    from mutmut.mutation.mutators import mutation_operators, operator_string

    operators = [(kind, operator) for kind, operator in mutation_operators if operator is not operator_string]
    wrapper = MetadataWrapper(libcst.parse_module(source), unsafe_skip_copy=True)

    def visit(node: libcst.CSTNode) -> Iterator[tuple[Any, Any, Any]]:
        # As in mutmut: types and decorators are read once, at import, and most changes of these two calls raise.
        if isinstance(node, libcst.Annotation | libcst.Decorator):
            return
        if isinstance(node, libcst.Call) and getattr(node.func, "value", None) in ("len", "isinstance"):
            return
        for kind, operator in operators:
            if isinstance(node, kind):
                yield from ((wrapper, node, changed) for changed in operator(node))
        for child in node.children:
            yield from visit(child)

    yield from visit(wrapper.module)


def make_mutant(source: str, number: int) -> Mutant:
    """Returns one of the mutants of a module."""
    import libcst
    from libcst.metadata import PositionProvider

    for place, (wrapper, node, changed) in enumerate(find_changes(source)):
        if place == number:
            mutated = wrapper.module.deep_replace(node, changed).code
            # Operators such as `<` have no position; the first line that differs has.
            lines = zip(source.splitlines(), [*mutated.splitlines(), ""], strict=False)
            line = next(index for index, (one, other) in enumerate(lines) if one != other)
            where = wrapper.resolve(PositionProvider).get(node)
            empty = libcst.Module([])
            before, after = (" ".join(empty.code_for_node(one).split()) for one in (node, changed))
            return Mutant(where.start.line if where else line + 1, before, after, mutated)
    raise IndexError(number)


# Tests


class SharedCompilations:
    """A plugin of pytest that makes JAX compile what is the same for all mutants once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pytest_collection_finish(self) -> None:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(self._folder))


class Imports:
    """A plugin of pytest that ends the process if a module of tests cannot be imported."""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            print(report.longrepr, flush=True)
            os._exit(99)


class FastestFirst:
    """A plugin of pytest that writes how long each test took, or runs the fastest first if that was written before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self._path.exists():
            seconds = Counter(json.loads(self._path.read_text()))
            items.sort(key=lambda item: seconds[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if not self._path.exists():
            self._path.write_text(json.dumps(self._seconds))


def run_tests(copy: Path, tests: Sequence[str], *, limit: float) -> tuple[str, float]:
    """Runs tests in a child process until one fails; returns the outcome for a mutant, and the seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_pytest(copy, tests)
    outcome = "timed out"
    try:
        while time.monotonic() < start + limit:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                outcome = OUTCOMES.get(os.waitstatus_to_exitcode(status), "killed")
                break
            time.sleep(0.02)
    finally:
        # What the tests have started goes, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if outcome == "timed out":
            os.waitpid(child, 0)
    return outcome, time.monotonic() - start


def _be_pytest(copy: Path, tests: Sequence[str]) -> None:
    """Becomes a process of pytest in the copy, as far as a fork can."""
    status = 1
    try:
        os.setsid()
        os.chdir(copy)
        with open("mutants.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
        import pytest

        # pytest cannot rewrite the assertions of plugins that are imported already, and need not.
        options = ["-q", "-x", "-n", "0", "--assert=plain", "-p", "no:cacheprovider"]
        options += ["--basetemp", str(copy.parent / "basetemp")]
        plugins = [SharedCompilations(copy.parent / "compiled"), Imports(), FastestFirst(copy.parent / DURATIONS)]
        status = int(pytest.main([*options, *tests], plugins=plugins))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
