"""What power cuts and flipped bits do to checkpoints: `python -m tests.bench.durability --peers PYTHON`.

Every tool of `tests.bench.durability_tools` trains once under `strace`. `tests/crashes.py` computes what power cuts
would leave of its files, and the tool resumes from each: at the last checkpoint that was reported as saved, or at the
one being written, with the right values, up to the same end. After that, single bits of the files of the finished
training are flipped, and the tool resumes again.

- cuts: nothing reaches the disk before it is synchronised, which is the worst that POSIX allows.
- cuts_while_saving: before an epoch ends, everything before it has reached the disk, as if epochs took minutes. What is
  lost was written by the last save.
- flips: flipped bits.

The last line is one JSON object with these counts:

- resumed: at the right checkpoint with the right values.
- older: with the right values of an earlier checkpoint, or from the start; `older_said` if something was printed that
  an undisturbed training does not print.
- refused: the training ended with an exception, crashed or hung.
- wrong: with other values than any that were saved, or with the values of another epoch; `wrong_said` as above.

The peers are optional: `pip install torch==2.14.1 lightning keras`. With `--peers PYTHON` they run in the Python of
another environment; without it, jaxcnn and Orbax are compared. It takes Linux and `strace`.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench.durability_tools import EPOCHS, TOOLS
from tests.crashes import check_replay, crash_often, record, replay

OUTCOMES = ("resumed", "older_said", "older", "refused", "wrong_said", "wrong")
KINDS = ("cuts", "cuts_while_saving", "flips")
OURS = ("jaxcnn", "orbax")
"""Tools in the lock."""
PROGRAM = "from tests.bench.durability_tools import main; main()"
ROOT = Path(__file__).parents[2]


class Tool:
    """Resumes trainings in a process, which is started again after a crash."""

    def __init__(self, name: str, python: str) -> None:
        self.name, self.python = name, python
        self._process: subprocess.Popen[str] | None = None

    def resume(self, folder: Path) -> dict[str, Any]:
        """Resumes the training in a folder; returns the answer that `durability_tools.main` describes."""
        if self._process is None:
            command = [self.python, "-c", PROGRAM, self.name]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        print(folder, file=self._process.stdin, flush=True)
        if line := self._process.stdout.readline():
            return dict(json.loads(line))
        status = self._process.wait()
        self._process = None
        return {"epochs": [], "error": f"the process ended with status {status}", "said": []}

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()

    def version(self) -> str:
        """Returns the version of the package that writes the files; raises CalledProcessError if it is missing."""
        package = TOOLS[self.name][1]
        program = f"import importlib.metadata as m; print(m.version({package!r}))"
        done = subprocess.run([self.python, "-c", program], check=True, capture_output=True, text=True)
        return f"{package} {done.stdout.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="Python interpreter that has PyTorch, Lightning and Keras")
    parser.add_argument("--schedules", type=int, default=200, help="power cuts for each tool")
    parser.add_argument("--flips", type=int, default=50, help="flipped bits for each tool")
    parser.add_argument("--only", nargs="+", choices=TOOLS, help="tools to compare")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.only or TOOLS:
        tool = Tool(name, sys.executable if name in OURS else arguments.peers or sys.executable)
        try:
            version = tool.version()
        except subprocess.CalledProcessError:
            print(f"{name} does not run here: {TOOLS[name][1]} is not installed", file=sys.stderr)
            continue
        results[name] = {"version": version, **measure(tool, arguments.schedules, arguments.flips)}
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
    print(describe(results))
    print(json.dumps(results))


def measure(tool: Tool, schedules: int, flips: int) -> dict[str, dict[str, int]]:
    """Returns the outcomes of power cuts and of flipped bits with their counts."""
    with tempfile.TemporaryDirectory(prefix="durability-") as name:
        place = Path(name)
        root, middle, replayed, crashed, flipped = (place / part for part in ("root", "middle", "end", "cuts", "flips"))
        for folder in (root, middle, replayed, crashed, flipped):
            folder.mkdir()
        calls = record(PROGRAM, tool.name, root, log=place / "calls", python=tool.python)
        saved = find_reports(check_replay(root, calls, replayed))
        reports = [number for number, call in enumerate(calls) if find_reports(call.strings)]
        # What an undisturbed training prints when it is resumed.
        replay(root, calls[: reports[EPOCHS // 2] + 1], middle)
        usual = set()
        for folder in (middle, replayed):
            answer = tool.resume(folder)
            assert judge(answer, saved, finished=EPOCHS if folder == replayed else EPOCHS // 2) == "resumed", answer
            usual |= lines(answer)
        # Disturb it.
        counts = {kind: Counter[str]() for kind in KINDS}
        for kind, settled in (("cuts", ()), ("cuts_while_saving", [number + 1 for number in reports])):
            for seed, folder, words in crash_often(root, calls, crashed, schedules=schedules, settled=settled):
                finished = max(find_reports(words), default=0)
                counts[kind][outcome(tool, folder, saved, usual, finished=finished, what=f"{kind}, {seed}")] += 1
        for what, folder in flip_often(root, flipped, flips=flips):
            counts["flips"][outcome(tool, folder, saved, usual, finished=EPOCHS, what=what)] += 1
        tool.close()
    return {kind: {name: found[name] for name in OUTCOMES} for kind, found in counts.items()}


def find_reports(words: Iterable[bytes]) -> dict[int, str]:
    """Returns the digests in what a training printed, by epoch."""
    reports = [word.decode().strip().split(":") for word in words if word.startswith(b"saved:")]
    return {int(epoch): digest for _, epoch, digest in reports}


def outcome(tool: Tool, folder: Path, saved: Mapping[int, str], usual: set[str], *, finished: int, what: str) -> str:
    """Resumes a training and returns what became of it; prints what is not right to standard error."""
    answer = tool.resume(folder)
    found = judge(answer, saved, finished=finished)
    if found in ("older", "wrong") and lines(answer) - usual:
        found = f"{found}_said"
    if found != "resumed":
        begins = answer["epochs"][0][0] if answer["epochs"] else "nothing"
        said = answer["error"] or "; ".join(sorted(lines(answer) - usual))
        print(f"{tool.name}, {what}: {found}, {begins} instead of {finished}: {said[:300]!a}", file=sys.stderr)
    return found


def judge(answer: Mapping[str, Any], saved: Mapping[int, str], *, finished: int) -> str:
    """Returns what became of a training.

    Args:
      answer: what the resumed training reported.
      saved: the digests of an undisturbed training by epoch.
      finished: the last epoch that had been reported as saved.
    """
    epochs = answer["epochs"]
    if any(saved.get(epoch) != digest for epoch, digest in epochs):
        return "wrong"
    if answer["error"] is not None or not epochs:
        return "refused"
    assert epochs[-1][0] == EPOCHS, answer
    return "older" if epochs[0][0] < finished else "resumed"


def lines(answer: Mapping[str, Any]) -> set[str]:
    """Returns what a training printed, with numbers left out."""
    return {re.sub(r"\d+", "#", line) for line in answer["said"]}


def flip_often(root: Path, target: Path, *, flips: int) -> Iterator[tuple[str, Path]]:
    """Flips single bits of a folder, each in a new copy that is removed afterwards; yields which, and the copy.

    All bits are equally likely, so that most are in the values.
    """
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in paths]
    for seed in range(flips):
        draw = random.Random(seed)
        (path,) = draw.choices(paths, sizes)
        content = bytearray(path.read_bytes())
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        content[place] ^= 1 << bit
        folder = Path(shutil.copytree(root, target / str(seed)))
        (folder / path.relative_to(root)).write_bytes(content)
        yield f"bit {bit} of byte {place} of {path.relative_to(root)}", folder
        shutil.rmtree(folder, ignore_errors=True)


def describe(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the counts as a table in Markdown."""
    rows = ["| tool | version | after | " + " | ".join(OUTCOMES) + " |", "|---|---|---|" + "---|" * len(OUTCOMES)]
    for name, result in results.items():
        for kind in KINDS:
            counts = " | ".join(str(count) for count in result[kind].values())
            rows.append(f"| {name} | {result['version']} | {kind} | {counts} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
