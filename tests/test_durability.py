"""The benchmark of durability: how it judges, which bits it flips, and jaxcnn and Orbax in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from crashes import History, _parse, check_replay, crash_often, record

from tests.bench import durability

ROOT = Path(__file__).parents[1]
SAVED = {epoch: f"digest {epoch}" for epoch in range(5)}
COPY = """
import shutil, sys
from pathlib import Path
first, second = (Path(sys.argv[1]) / name for name in ("first", "second"))
first.write_text("before")
shutil.copyfile(first, second)
first.write_text("after")
"""

REWRITE = """
import os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
for said in (b"once ", b"again "):
    file = os.open(sys.argv[1] + "/file", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(file, b"the same")
    if said == b"once ":
        os.fsync(file)
        os.fsync(folder)
    os.write(1, said)
"""


@pytest.mark.parametrize(
    ("epochs", "error", "expected"),
    [
        ([(2, "digest 2"), (3, "digest 3"), (4, "digest 4")], None, "resumed"),
        ([(3, "digest 3"), (4, "digest 4")], None, "resumed"),
        ([(1, "digest 1"), (2, "digest 2"), (3, "digest 3"), (4, "digest 4")], None, "older"),
        ([(2, "digest 1")], None, "wrong"),
        ([(2, "digest 2"), (3, "digest 3"), (4, "other")], None, "wrong"),
        ([(2, "digest 3")], "OSError: late", "wrong"),
        ([(5, "digest 4")], None, "wrong"),
        ([(2, "digest 2")], "OSError: late", "refused"),
        ([], "OSError: early", "refused"),
    ],
)
def test_a_training_is_judged_by_where_it_begins_and_by_its_values(epochs, error, expected):
    assert durability.judge({"epochs": epochs, "error": error}, SAVED, finished=2) == expected


def test_one_bit_differs_in_a_copy(tmp_path):
    root, target = tmp_path / "root", tmp_path / "target"
    (root / "below").mkdir(parents=True)
    target.mkdir()
    contents = {"small": b"1", "below/large": bytes(range(200))}
    for name, content in contents.items():
        (root / name).write_bytes(content)
    changed = []
    for _, folder in durability.flip_often(root, target, flips=20):
        found = {name: (folder / name).read_bytes() for name in contents}
        (name,) = [name for name in contents if found[name] != contents[name]]
        bits = [(one ^ other).bit_count() for one, other in zip(found[name], contents[name], strict=True)]
        assert sum(bits) == 1
        changed.append((name, bits.index(1)))
    assert len(set(changed)) > 10
    assert not list(target.iterdir())


def test_a_copy_is_followed_although_its_source_changes(tmp_path):
    root, replayed = tmp_path / "root", tmp_path / "replayed"
    root.mkdir()
    replayed.mkdir()
    calls = record(COPY, root, log=tmp_path / "calls")
    assert any(call.name == "sendfile" for call in calls)
    check_replay(root, calls, replayed)
    assert (replayed / "second").read_text() == "before"


def test_a_file_that_is_written_again_may_be_lost_although_it_becomes_the_same(tmp_path):
    root, target = tmp_path / "root", tmp_path / "crashes"
    root.mkdir()
    target.mkdir()
    calls = record(REWRITE, root, log=tmp_path / "calls")
    found = {b"once": set(), b"again": set()}
    for _, folder, words in crash_often(root, calls, target, schedules=100):
        if words:
            found[words[-1]].add((folder / "file").read_bytes())
    assert b"the same" in found[b"once"]
    assert found[b"again"] - {b"the same"}


def test_what_is_written_while_another_thread_synchronises_may_be_lost():
    file = "".join(f"\\x{byte:02x}" for byte in b"/folder/file")
    lines = [
        f'1 openat(AT_FDCWD<\\x2f>, "{file}", O_WRONLY|O_CREAT, 0666) = 3<{file}>',
        f'1 write(3<{file}>, "\\x61", 1) = 1',
        f"1 fsync(3<{file}> <unfinished ...>",
        f'2 write(3<{file}>, "\\x62", 1) = 1',
        "1 <... fsync resumed>) = 0",
    ]
    history = History(Path("/folder"))
    for call in _parse(lines):
        history.apply(call)
    (node,) = history.nodes()
    assert (node.content, node.durable, node.unchanged) == (b"ab", b"a", 1)


@pytest.mark.drill
def test_jaxcnn_resumes_where_it_was_and_reports_damage():
    command = [sys.executable, "-m", "tests.bench.durability", "--only", "jaxcnn", "orbax"]
    done = subprocess.run(
        [*command, "--schedules", "20", "--flips", "10"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert list(results) == ["jaxcnn", "orbax"]
    for result in results.values():
        assert [sum(result[kind].values()) for kind in durability.KINDS] == [20, 20, 10]
    cuts, cuts_while_saving, flips = (results["jaxcnn"][kind] for kind in durability.KINDS)
    assert cuts["resumed"] == cuts_while_saving["resumed"] == 20
    assert flips["resumed"] + flips["older_said"] == 10
