"""The soak for some seconds, and that it notices what it is about."""

import asyncio
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from tests.soak import good
from tests.soak.good import GoodClient
from tests.soak.models import Models
from tests.soak.questions import Question
from tests.soak.record import Record, Usage, find_growth, poll

ROOT = Path(__file__).parents[2]
RED = Question("raw", b"a request", [["red"]], lambda response: [json.loads(response.body)["predicted_class"]])


@pytest.mark.drill
def test_twenty_seconds_of_everything():
    from tests.soak import bad  # Its import encodes large pictures, which takes seconds.

    command = [sys.executable, "-m", "tests.soak", "--hours", str(20 / 3600), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"] == []
    assert (done.returncode, done.stderr) == (0, "")
    counts = result["counts"]
    assert counts["good"] > 100
    assert counts["restarts"] >= 4
    assert counts["damaged files"] >= 4
    assert counts["full disks"] >= 2
    assert all(counts[kind.__name__] for kind in bad.KINDS)
    assert {name: len(rests) for name, rests in result["rests"].items()} == {"steady": 2, "socket": 2, "workers": 2}


# What it notices


def test_a_wait_counts_only_the_time_in_which_the_process_runs(monkeypatch):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    answers = iter([False] * 30 + [True])
    assert asyncio.run(poll(lambda: next(answers), 2))
    assert len(slept) == 30
    assert not asyncio.run(poll(lambda: False, 2))
    assert sum(slept[30:]) == pytest.approx(2)


def test_growth_is_noticed():
    usage = Usage(rss_mb=200, descriptors=30, threads=12, processes=1)
    assert find_growth([usage] * 6, 200) == []
    for grown in ({"rss_mb": 237}, {"descriptors": 33}, {"threads": 12 + 33}):
        (text,) = find_growth([usage] * 5 + [Usage(**{**vars(usage), **grown})], 200)
        assert text.startswith(str(*grown.values()))


def test_a_service_that_refuses_all_good_requests_is_noticed():
    record = Record(patience=2)
    record.served["steady"] += 1
    record.check_served(("steady", "socket"), "phase 0")
    record.check_served(("steady",), "phase 1")
    assert record.faults == [
        "socket: no good request was answered in phase 0",
        "steady: no good request was answered in phase 1",
    ]


def test_only_the_versions_of_the_time_are_right(tmp_path):
    models = Models(tmp_path)
    before = time.monotonic()
    models.replace_colours()
    after = time.monotonic()
    assert models.is_right("red0", "red", before)
    assert models.is_right("red1", "red", after)
    for answer in ("red0", "red2", "blue1", "red"):
        assert not models.is_right(answer, "red", after)
    assert models.is_right("a fish", "a fish", after)
    assert not models.is_right("a bird", "a fish", after)


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Returns what a good client records that gets some bytes, and then the end of the connection."""
    monkeypatch.setattr(good, "make_question", lambda pictures, random: RED)
    return functools.partial(_judge, Models(tmp_path))


def _judge(models: Models, answer: bytes, *, stalled: bool = False) -> Record:
    record = Record(patience=2)
    over = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.set()
        await reader.read(100)
        record.stalled_at = time.monotonic() if stalled else record.stalled_at
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        service = SimpleNamespace(name="fake", port=port, is_ready=True, waits_in_socket=False, is_restarting=False)
        service.restarted_at = service.terminated_at = 0.0
        client = GoodClient("127.0.1.1", [service], models, record, Random(3))
        await client.run({}, over)
        server.close()

    asyncio.run(ask())
    return record


def response(status: int, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "lost: IncompleteReadError"),
        (response(200, '{"predicted_class": "red0"}')[:-1], "lost: "),
        (response(200, '{"predicted_class": "blue0"}'), "['blue0'] instead of ['red']"),
        (response(504, "{}"), "504"),
        (response(500, "{}"), "500"),
        (response(200, "[]"), "unreadable"),
        (response(503, "{}"), "503"),
    ],
)
def test_a_good_request_that_is_not_answered_is_a_fault(judge, answer, fault):
    (found,) = judge(answer).faults
    assert fault in found


def test_right_answers_and_polite_refusals_are_no_fault(judge):
    assert judge(response(200, '{"predicted_class": "red0"}')).counts["good"] == 1
    record = judge(response(503, "{}", "Retry-After: 1"))
    assert record.faults == []
    assert record.counts["refused"] == 1


def test_a_machine_that_stood_still_is_no_fault(judge):
    record = judge(b"", stalled=True)
    assert (record.faults, record.counts["stalled"]) == ([], 1)
