import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import log
from server.log import LogWriter


def written(fields: dict[str, object], count: int = 1) -> list[dict[str, object]]:
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    for _ in range(count):
        writer.write(fields)
    writer.close()
    os.close(descriptor)
    with open(reader, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_every_line_is_written_before_the_end():
    lines = written({"message": "hello\nworld"}, count=300)
    assert [line["message"] for line in lines] == ["hello\nworld"] * 300
    assert list(lines[0]) == ["time", "message"]


def test_text_that_is_not_unicode_does_not_stop_the_log():
    assert written({"message": "file \udcff"})[0]["message"] == "file \udcff"


@pytest.mark.parametrize("room", [0, 1, 140, 141, 142, 200])
def test_a_line_that_a_full_disk_cuts_off_spoils_no_other(monkeypatch, room):
    def write_some(descriptor: int, text: bytes) -> int:
        size = min(len(text), 100, disk.room)
        if not size:
            raise OSError(errno.ENOSPC, "No space left on device")
        disk.written += text[:size]
        disk.room -= size
        return size

    disk = SimpleNamespace(room=room, written=b"")
    monkeypatch.setattr(log, "os", SimpleNamespace(write=write_some))
    writer = LogWriter(1)
    writer.close()
    for message in ("x" * 87, "x" * 87, "after", "last"):
        if message == "after":
            disk.room = 1000
        writer.write({"message": message})
        writer._flush()
    *cut, after, last = disk.written.removesuffix(b"\n").split(b"\n")
    assert [json.loads(line)["message"] for line in (after, last)] == ["after", "last"]
    assert b"" not in cut
    assert len(b"\n".join(cut)) in (0, room, room - 1)


def test_the_oldest_of_too_many_lines_are_dropped():
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    for _ in range(20_000):
        writer.write({"message": "x" * 100})
    assert len(writer._lines) <= 10_000
    writer.close()  # Nobody reads the pipe.
    os.close(reader)


@pytest.mark.parametrize("name", ["server.workers", "uvicorn.error", "asyncio", "opentelemetry.sdk.trace"])
def test_all_loggers_write_json(name):
    code = f"import logging; from server import log; log.start(); logging.getLogger({name!r}).error('two\\nlines')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert {**json.loads(done.stdout), "time": ""} == {"time": "", "level": "error", "message": "two\nlines"}
    assert done.stderr == ""
