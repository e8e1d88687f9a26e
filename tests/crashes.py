"""What a power cut can leave of a program's files, computed from the system calls that the program makes.

`record` runs a program under strace, below every library that writes: Python's, and TensorStore's in C++. `crash` then
computes the files after a power cut, as ALICE does (Pillai et al. 2014, "All File Systems Are Not Created Equal"):
contents that were not synchronised are lost, torn, filled with zeros or written in any of their sectors, and names that
were not synchronised are lost, the later ones or any of them. One recording gives any number of crashes, each from a
seed that repeats it exactly.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

SCHEDULES = int(os.environ.get("JAXCNN_SCHEDULES", "100"))
"""Crashes that a test computes by default."""
CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,sendfile,ftruncate,lseek,rename,renameat,renameat2,unlink,"
    "unlinkat,rmdir,mkdir,mkdirat,fsync,fdatasync,dup,dup2,dup3,fcntl"
)
SYNC_BEGINS = "sync begins"
"""Name of a call that begins to synchronise, before calls of other threads, and ends later."""
HEX = r"(?:\\x[0-9a-f]{2})*"
SECTOR = 512
"""Bytes that a disk writes wholly or not at all."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Call:
    """A system call that succeeded.

    Attributes:
      name: of the call.
      text: its arguments, as strace prints them.
      result: what it returned.
    """

    name: str
    text: str
    result: int

    @property
    def strings(self) -> list[bytes]:
        """The arguments that are strings."""
        return [_decode(found) for found in re.findall(rf'"({HEX})"', self.text)]

    @property
    def files(self) -> list[tuple[int, str]]:
        """The arguments that are open files: their descriptors and paths. The working directory's is -1."""
        found = re.findall(rf"(\d+|AT_FDCWD)<({HEX})>", self.text)
        return [(-1 if number == "AT_FDCWD" else int(number), _decode(path).decode()) for number, path in found]

    def is_below(self, root: Path) -> bool:
        """Whether it concerns a file below a folder, or prints something."""
        paths = [path.encode() for _, path in self.files] + self.strings
        prints = self.name == "write" and self.files[0][0] == 1
        return prints or any(path.startswith(bytes(root)) for path in paths)


def record(program: str, *arguments: object, log: Path, python: str = sys.executable) -> list[Call]:
    """Runs a Python program under strace and returns its calls in order; skips the test where that is not possible."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("strace is missing, or may not trace processes here")
    strace = ["strace", "-f", "-qq", "-y", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={CALLS}"]
    command = [python, "-c", program, *map(str, arguments)]
    done = subprocess.run([*strace, "-o", str(log), *command], timeout=250, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return list(_parse(log.read_text().splitlines()))


def _parse(lines: list[str]) -> Iterator[Call]:
    unfinished: dict[str, str] = {}
    for line in lines:
        thread, text = line.split(maxsplit=1)
        if text.endswith("<unfinished ...>"):
            unfinished[thread] = text = text.removesuffix("<unfinished ...>")
            if text.startswith(("fsync(", "fdatasync(")):
                yield Call(SYNC_BEGINS, text, 0)
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            text = unfinished.pop(thread) + text[resumed.end() :]
        if (found := re.fullmatch(r"(\w+)\((.*)\)\s+= (\d+).*", text)) is not None:
            yield Call(found[1], found[2], int(found[3]))


def _decode(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(eq=False)
class Node:
    """A file or a folder: its content now, and the content that has reached the disk.

    The first `unchanged` bytes are on the disk, and no call has touched them since: they stay.
    """

    is_folder: bool
    content: bytes = b""
    durable: bytes = b""
    unchanged: int = 0
    names: dict[str, "Node"] = field(default_factory=dict)


@dataclass(eq=False)
class Change:
    """A change of names, which happens wholly or not at all: pairs of a folder and a name, with what gets the name."""

    entries: list[tuple[Node, str, Node | None]]
    waits_for: set[Node]
    """Folders that have to be synchronised until it has reached the disk."""


class History:
    """The files below a folder, as the calls change them one after the other."""

    def __init__(self, root: Path):
        self.root, self.top = root, Node(is_folder=True)
        self.changes: list[Change] = []
        self.output = b""
        self._open: dict[int, tuple[Node, int]] = {}
        self._begun: dict[tuple[int, str], tuple[bytes, list[Change]]] = {}

    def apply(self, call: Call) -> None:
        """Applies the next call."""
        if call.name in ("open", "openat", "creat"):
            self._apply_open(call)
        elif call.name in ("write", "writev", "pwrite64", "pwritev", "sendfile", "lseek", "ftruncate"):
            self._apply_write(call)
        elif call.name == SYNC_BEGINS and (node := self._find(call.files[0][1])) is not None:
            self._begun[call.files[0]] = node.content, list(self.changes)
        elif call.name in ("fsync", "fdatasync") and (node := self._find(call.files[0][1])) is not None:
            # What other threads have written since it began need not be part of it.
            node.durable, changes = self._begun.pop(call.files[0], (node.content, self.changes))
            node.unchanged = len(node.durable) if node.content.startswith(node.durable) else 0
            for change in changes:
                change.waits_for.discard(node)
        elif call.name.startswith(("rename", "unlink", "rmdir", "mkdir")):
            self._apply_names(call)
        elif call.name.startswith("dup") or "F_DUPFD" in call.text:
            # NumPy writes to a copy of the descriptor, after it has set the position of the copy.
            self._open.pop(call.result, None)
            if call.files[0][0] in self._open:
                self._open[call.result] = self._open[call.files[0][0]]

    def nodes(self, folder: Node | None = None) -> Iterator[Node]:
        """Yields the files that have names now."""
        for node in (folder or self.top).names.values():
            yield from self.nodes(node) if node.is_folder else [node]

    def settle(self) -> None:
        """Lets everything so far reach the disk, as systems do by themselves after half a minute."""
        for change in self.changes:
            change.waits_for.clear()
        for node in self.nodes():
            node.durable, node.unchanged = node.content, len(node.content)

    def crash(self, target: Path, random: np.random.Generator) -> None:
        """Writes the files that a power cut could leave now into an empty folder."""
        kept = self._kept_changes(random)
        names: dict[int, dict[str, Node]] = {}
        for change in kept:
            for folder, name, node in change.entries:
                if node is None:
                    names.setdefault(id(folder), {}).pop(name, None)
                else:
                    names.setdefault(id(folder), {})[name] = node

        def write(folder: Node, path: Path) -> None:
            for name, node in names.get(id(folder), {}).items():
                if node.is_folder:
                    (path / name).mkdir()
                    write(node, path / name)
                else:
                    (path / name).write_bytes(_torn(node, random))

        write(self.top, target)

    def _kept_changes(self, random: np.random.Generator) -> list[Change]:
        """Changes of names that reached the disk: all that were synchronised, and the first or any of the others."""
        pending = [change for change in self.changes if change.waits_for]
        in_order, count = random.random() < 0.5, int(random.integers(len(pending) + 1))
        share = random.random()
        lost = set(pending[count:]) if in_order else {change for change in pending if random.random() < share}
        return [change for change in self.changes if change not in lost]

    def _apply_open(self, call: Call) -> None:
        path = self._paths(call)[0]
        if not path.startswith(f"{self.root}/"):
            self._open.pop(call.result, None)
            return
        node = self._find(path)
        if node is None and "O_CREAT" in call.text:
            node = Node(is_folder=False)
            self._change((path, node))
        assert node is not None, path
        if "O_TRUNC" in call.text:
            node.content, node.unchanged = b"", 0
        self._open[call.result] = (node, -1 if "O_APPEND" in call.text else 0)

    def _apply_write(self, call: Call) -> None:
        number = call.files[0][0]
        data = self._sent(call) if call.name == "sendfile" else b"".join(call.strings)
        if number == 1:
            self.output += data
        if number not in self._open or not call.files[0][1].startswith(f"{self.root}/"):
            return
        node, offset = self._open[number]
        if call.name == "lseek":
            self._open[number] = (node, offset if offset < 0 else call.result)
        elif call.name == "ftruncate":
            size = int(call.text.rsplit(",", 1)[1])
            node.content = node.content[:size].ljust(size, b"\0")
            node.unchanged = min(node.unchanged, size)
        else:
            positioned = call.name.startswith("p")
            start = int(call.text.rsplit(",", 1)[1]) if positioned else len(node.content) if offset < 0 else offset
            data = data[: call.result]
            node.content = node.content[:start].ljust(start, b"\0") + data + node.content[start + len(data) :]
            node.unchanged = min(node.unchanged, start)
            if not positioned and offset >= 0:
                self._open[number] = (node, start + len(data))

    def _apply_names(self, call: Call) -> None:
        paths = self._paths(call)
        if not all(path.startswith(f"{self.root}/") for path in paths):
            assert not any(path.startswith(f"{self.root}/") for path in paths), call
        elif call.name.startswith("mkdir"):
            self._change((paths[0], Node(is_folder=True)))
        elif call.name.startswith("rename"):
            self._change((paths[0], None), (paths[1], self._find(paths[0])))
        else:
            self._change((paths[0], None))

    def _change(self, *entries: tuple[str, Node | None]) -> None:
        found = [(self._find(os.path.dirname(path)), os.path.basename(path), node) for path, node in entries]
        for folder, name, node in found:
            assert folder is not None
            folder.names.pop(name, None)
            if node is not None:
                folder.names[name] = node
        self.changes.append(Change(found, {folder for folder, _, _ in found}))  # type: ignore[misc, arg-type]

    def _paths(self, call: Call) -> list[str]:
        """The paths in a call, from the root of the file system."""
        folders = [path for _, path in call.files]
        paths = [path.decode(errors="replace") for path in call.strings]
        return [
            os.path.join(folders[min(i, len(folders) - 1)] if folders else "", path) for i, path in enumerate(paths)
        ]

    def _sent(self, call: Call) -> bytes:
        """Returns what `sendfile` copied; a file that is not below the folder must be as it was."""
        start, source = int(re.search(r"\[(\d+)\]", call.text)[1]), call.files[1]  # type: ignore[index]
        known = source[1].startswith(f"{self.root}/")
        content = self._open[source[0]][0].content if known else Path(source[1]).read_bytes()
        return content[start : start + call.result]

    def _find(self, path: str) -> Node | None:
        if path == str(self.root):
            return self.top
        node: Node | None = self.top
        for name in Path(path).relative_to(self.root).parts if path.startswith(f"{self.root}/") else ("",):
            node = None if node is None else node.names.get(name)
        return node


def _torn(node: Node, random: np.random.Generator) -> bytes:
    """Returns what a power cut leaves of a file: see `torn`."""
    if node.unchanged == len(node.content) == len(node.durable):
        return node.content
    return torn(node.durable, node.content, random, unchanged=node.unchanged)


def torn(before: bytes, after: bytes, random: np.random.Generator, *, unchanged: int = 0) -> bytes:
    """Returns what a power cut can leave of a file that was to become another: either, a part, or some sectors.

    The first `unchanged` bytes are part of both, and stay.
    """
    kind, size = random.integers(5), int(random.integers(unchanged, len(after) + 1))
    part = after[:size]
    if kind < 4:
        return (before, after, part, part.ljust(len(after), b"\0"))[kind]
    # The disk writes sectors in any order; what was not there before reads as zeros.
    old = before[: len(after)].ljust(len(after), b"\0")
    starts = range(0, len(after), SECTOR)
    is_written = random.random(len(starts)) < random.random()
    return b"".join(
        (after if new else old)[start : start + SECTOR] for start, new in zip(starts, is_written, strict=True)
    )


def replay(root: Path, calls: Sequence[Call], target: Path) -> History:
    """Writes the files at the end of a recorded program, without a crash, into an empty folder."""
    history = History(root)
    for call in calls:
        history.apply(call)
    history.settle()
    history.crash(target, np.random.default_rng(0))
    return history


def check_replay(root: Path, calls: Sequence[Call], target: Path, *, but: Collection[str] = ()) -> list[bytes]:
    """Compares the files that the calls add up to with those that the program left, and returns what it printed.

    Args:
      root: the folder that was recorded, as the program left it.
      calls: what `record` returned.
      target: an empty folder.
      but: suffixes of files that are written without calls.
    """
    printed = replay(root, calls, target).output.split()
    names = {path.relative_to(root) for path in root.rglob("*")}
    assert {path.relative_to(target) for path in target.rglob("*")} == names
    for name in names:
        if (root / name).is_file() and name.suffix not in but:
            assert (target / name).read_bytes() == (root / name).read_bytes(), name
    return printed


def crash_often(
    root: Path, calls: Sequence[Call], target: Path, *, schedules: int, settled: Collection[int] = ()
) -> Iterator[tuple[str, Path, list[bytes]]]:
    """Lets the power fail at random moments of a recorded program.

    Args:
      root: the folder that was recorded.
      calls: what `record` returned.
      target: an empty folder.
      schedules: number of crashes.
      settled: numbers of calls, from 0, that come so late that everything before them has reached the disk.

    Yields:
      The name of the seed, the folder with the files that are left, removed afterwards, and the words that the program
      had printed.
    """
    # Between calls that change nothing, one moment is as another.
    ends = [0, *(number for number, call in enumerate(calls, 1) if call.is_below(root))]
    moments = sorted((ends[int(np.random.default_rng(seed).integers(len(ends)))], seed) for seed in range(schedules))
    history, applied = History(root), 0
    for moment, seed in moments:
        for number in range(applied, moment):
            if number in settled:
                history.settle()
            history.apply(calls[number])
        applied = max(applied, moment)
        folder = target / str(seed)
        folder.mkdir()
        history.crash(folder, np.random.default_rng(seed))
        yield f"seed {seed}", folder, history.output.split()
        # Orbax may still be removing an unfinished checkpoint, in a thread.
        shutil.rmtree(folder, ignore_errors=True)
