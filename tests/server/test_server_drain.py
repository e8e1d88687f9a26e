"""SIGTERM, with a clock that passes at once: when the server becomes unready, stops listening, and ends."""

import asyncio
import errno
import logging
import os
import signal
from types import SimpleNamespace

import pytest

from server import drain
from server.settings import Settings
from tests.server.virtual_time import run_virtually

MESSAGE = "SIGTERM: not ready any more, shutting down in 5 seconds"


@pytest.fixture
def seen(monkeypatch):
    """What happens to the listeners of a server, and when."""
    seen = SimpleNamespace(paused=[], resumed=[])

    def note(times: list[float]):
        return lambda server: times.append(round(asyncio.get_running_loop().time() - server.started_at, 3))

    monkeypatch.setattr(drain.listening, "pause", note(seen.paused))
    monkeypatch.setattr(drain.listening, "resume", note(seen.resumed))
    monkeypatch.delenv("LISTEN_PID", raising=False)
    return seen


def run(test, *, timeout: int | None = None, fd: int | None = None) -> SimpleNamespace:
    """Runs a coroutine function with a server and its admission, within `on_sigterm`; returns the server."""

    async def main() -> SimpleNamespace:
        started_at = asyncio.get_running_loop().time()
        config = SimpleNamespace(timeout_graceful_shutdown=timeout, fd=fd)
        server = SimpleNamespace(config=config, should_exit=False, started_at=started_at)
        admission = SimpleNamespace(is_ready=True)
        with drain.on_sigterm(server, admission, Settings(drain_seconds=5, read_seconds=30, deadline_ms=12_003)):
            await test(server, admission)
        return server

    return run_virtually(main())


async def sigterm_at(server: SimpleNamespace, seconds: float) -> None:
    """Waits until so many seconds after the start, then sends the signal to this process."""
    await until(server, seconds)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0.01)


async def until(server: SimpleNamespace, seconds: float) -> None:
    await asyncio.sleep(server.started_at + seconds - asyncio.get_running_loop().time())


def test_a_grace_period_comes_before_the_end(seen, caplog):
    async def test(server, admission):
        with caplog.at_level(logging.INFO):
            await sigterm_at(server, 0)
        assert admission.is_ready is False
        await until(server, 4.9)
        assert (seen.paused, server.should_exit) == ([], False)
        await until(server, 5.09)
        assert (seen.paused, server.should_exit) == ([5], False)
        await until(server, 5.11)
        assert server.should_exit

    run(test)
    assert [(record.name, record.message) for record in caplog.records] == [("server.drain", MESSAGE)]


@pytest.mark.parametrize(
    ("signals", "paused_at"),
    [
        ([0, 0.1, 0.9], [5]),
        ([0, 1], [1, 5]),
        ([0, 0.9, 1.05], [1.05, 5]),
    ],
    ids=["at once", "after a second", "counted from the first"],
)
def test_a_second_signal_ends_the_grace_period_unless_it_follows_at_once(seen, signals, paused_at):
    async def test(server, admission):
        for seconds in signals:
            await sigterm_at(server, seconds)
        await until(server, paused_at[0] + 0.09)
        assert not server.should_exit
        await until(server, paused_at[0] + 0.11)
        assert server.should_exit
        await until(server, 6)

    run(test)
    assert seen.paused == paused_at


def test_a_socket_of_systemd_stays_open_for_the_next_process(seen, monkeypatch):
    async def test(server, admission):
        await sigterm_at(server, 0)
        await until(server, 6)
        assert server.should_exit

    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    run(test)
    assert seen.paused == []
    # With `--fd 3 --workers 2` the variable names the parent process.
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    run(test, fd=3)
    assert seen.paused == []
    # Without --fd it is inherited from another process.
    run(test)
    assert seen.paused == [5]


def test_connections_are_accepted_again_until_the_first_signal(seen):
    async def test(server, admission):
        await until(server, 0.35)
        assert seen.resumed == [0.1, 0.2, 0.3]
        await sigterm_at(server, 0.35)
        await until(server, 1)

    run(test)
    assert seen.resumed == [0.1, 0.2, 0.3]


def test_listeners_that_cannot_be_paused_hold_up_nothing(seen, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOBUFS, "No buffer space available")

    async def test(server, admission):
        await sigterm_at(server, 0)
        await until(server, 5.11)
        assert server.should_exit

    monkeypatch.setattr(drain.listening, "pause", fail)
    run(test)


def test_a_listener_that_cannot_be_resumed_is_tried_again(seen, monkeypatch):
    resume = drain.listening.resume

    def fail_at_first(server):
        resume(server)
        if len(seen.resumed) == 1:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    async def test(server, admission):
        await until(server, 0.25)
        assert seen.resumed == [0.1, 0.2]

    monkeypatch.setattr(drain.listening, "resume", fail_at_first)
    run(test)


def test_everything_ends_with_the_block(seen):
    async def main() -> None:
        before = asyncio.all_tasks()
        server = SimpleNamespace(
            config=SimpleNamespace(timeout_graceful_shutdown=None), should_exit=False, started_at=1000
        )
        with drain.on_sigterm(server, SimpleNamespace(is_ready=True), Settings()):
            assert signal.getsignal(signal.SIGTERM) is not handler
            await asyncio.sleep(0)
        await asyncio.sleep(0.5)
        assert asyncio.all_tasks() == before

    def handler(*_):
        raise AssertionError

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        run_virtually(main())
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen.resumed == []


@pytest.mark.parametrize(("given", "used"), [(None, 30 + 12 + 1), (7, 7), (0, 0)])
def test_requests_have_their_whole_time_to_end_unless_uvicorn_is_given_another(seen, given, used):
    async def test(server, admission):
        pass

    assert run(test, timeout=given).config.timeout_graceful_shutdown == used
