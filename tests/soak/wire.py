"""Plain HTTP over asyncio's streams, from any of the addresses of this machine."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass


def post(path: str, body: bytes, content_type: str, *headers: str) -> bytes:
    """Returns a whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: soak", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def get(path: str, *headers: str) -> bytes:
    """Returns a whole request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: soak", *headers, "", ""]).encode()


@dataclass(frozen=True)
class Response:
    """A whole response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether the server closes the connection after it."""
        return self.headers.get("connection") == "close"


class Connection:
    """A connection of a client.

    Attributes:
      has_answered: whether anything has arrived since the last call of `send`.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.has_answered = False

    @property
    def is_over(self) -> bool:
        """Whether the server has closed it."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def send(self, data: bytes) -> None:
        """Sends bytes, and waits until the system has most of them."""
        self.has_answered = False
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> Response:
        """Reads one response.

        Raises:
          OSError: the connection was reset.
          asyncio.IncompleteReadError: it was closed before the end of the response.
        """
        self.has_answered |= bool(first := await self._reader.readexactly(1))
        head = first + await self._reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            return await self.read()
        lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Response(int(lines[0].split()[1]), headers, body)

    def abort(self) -> None:
        """Closes it at once, whatever has not been sent or read."""
        self._writer.transport.abort()


async def connect(port: int, address: str, *, receive_bytes: int | None = None) -> Connection:
    """Connects from an address of this machine.

    Args:
      port: of the server.
      address: the client's, which the server takes for its name.
      receive_bytes: size of the system's buffer for what has not been read, if not the usual one.
    """
    client = socket.socket()
    client.setblocking(False)
    try:
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=client, limit=receive_bytes or 2**20)
    except BaseException:
        client.close()
        raise
    return Connection(reader, writer)


@contextlib.asynccontextmanager
async def connected(port: int, address: str, *, receive_bytes: int | None = None) -> AsyncIterator[Connection]:
    """Connects, and closes at the end of the block."""
    connection = await connect(port, address, receive_bytes=receive_bytes)
    try:
        yield connection
    finally:
        connection.abort()
