"""The listening sockets while the server shuts down."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from ports import free_port

from server import listening

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters what arrives at a socket")


@contextlib.contextmanager
def running(family: int = socket.AF_INET, address: object = ("127.0.0.1", 0)):
    """A server as uvicorn has it, and the address to connect to."""
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(16)
        listener.setblocking(False)
        server = SimpleNamespace(servers=[SimpleNamespace(sockets=[listener])], config=SimpleNamespace(backlog=16))
        yield server, listener


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Lets this process open nothing until the end of the block."""
    resource = pytest.importorskip("resource", reason="the system has no limit of open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(1)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def attempt(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family)
    client.settimeout(0.3)
    try:
        client.connect(listener.getsockname())
    except BaseException:
        client.close()
        raise
    return client


@ON_LINUX
@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
def test_a_paused_listener_takes_no_connection_until_it_is_resumed(family, host):
    with running(family, (host, 0)) as (server, listener):
        listening.pause(server)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                attempt(listener)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listening.resume(server)
        attempt(listener).close()


@ON_LINUX
def test_a_connection_made_before_is_served():
    with running() as (server, listener), attempt(listener) as client:
        listening.pause(server)
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            assert client.recv(100) == b"answer"


@ON_LINUX
def test_pausing_or_resuming_twice_is_no_error():
    with running() as (server, listener):
        for change in (listening.resume, listening.pause, listening.pause, listening.resume, listening.resume):
            change(server)
        attempt(listener).close()


@ON_LINUX
def test_it_takes_no_descriptor_to_pause_or_to_resume():
    with running() as (server, listener):
        with no_descriptor_left():
            listening.pause(server)
        with pytest.raises(TimeoutError):
            attempt(listener)
        with no_descriptor_left():
            listening.resume(server)
        attempt(listener).close()


def test_a_socket_in_the_file_system_has_a_backlog_of_one(tmp_path):
    with running(socket.AF_UNIX, str(tmp_path / "socket")) as (server, listener):
        listening.pause(server)
        with attempt(listener), pytest.raises((TimeoutError, BlockingIOError)):
            attempt(listener)
        listening.resume(server)
        attempt(listener).close()


@ON_LINUX
def test_where_the_system_has_no_filters_the_backlog_is_one(monkeypatch):
    monkeypatch.setattr(listening, "_SO_ATTACH_FILTER", 9999)
    monkeypatch.setattr(listening, "_SO_DETACH_FILTER", 9999)
    with running() as (server, listener):
        listening.pause(server)
        with attempt(listener), pytest.raises(TimeoutError):
            attempt(listener)
        listening.resume(server)
        attempt(listener).close()


def test_a_server_that_does_not_listen_yet_is_left_alone():
    listening.pause(SimpleNamespace())
    listening.resume(SimpleNamespace())


@ON_LINUX
def test_the_sockets_of_an_event_loop_are_paused():
    async def pause_and_connect() -> None:
        running_ = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        listening.pause(SimpleNamespace(servers=[running_]))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.open_connection(*running_.sockets[0].getsockname()), 0.3)
        running_.close()

    asyncio.run(pause_and_connect())


@pytest.mark.parametrize(
    ("host", "has_workers", "families"),
    [
        ("", False, {socket.AF_INET, socket.AF_INET6}),
        ("::", False, {socket.AF_INET6}),
        ("", True, {socket.AF_INET}),
        ("::", True, {socket.AF_INET, socket.AF_INET6}),
    ],
)
def test_the_option_host_listens_on_what_the_readme_says(host, has_workers, families):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode()})

    async def ask(config):
        server = uvicorn.Server(config)
        # With `--workers` the parent process opens the socket.
        serving = asyncio.create_task(server.serve([config.bind_socket()] if has_workers else None))
        while not server.started:
            await asyncio.sleep(0.01)
        found = {}
        async with httpx.AsyncClient(trust_env=False) as client:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "[::1]")):
                with contextlib.suppress(httpx.ConnectError):
                    found[family] = (await client.get(f"http://{address}:{config.port}")).text
        server.should_exit = True
        await serving
        return found

    found = asyncio.run(ask(uvicorn.Config(answer, host=host, port=free_port(), lifespan="off", log_config=None)))
    assert set(found) == families
    if has_workers and host == "::":
        assert found[socket.AF_INET] == "::ffff:127.0.0.1"
