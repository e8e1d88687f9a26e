"""The sockets that a server listens on, paused before it shuts down so that no client is reset.

The system completes connections before the server accepts them, and resets those that nobody has accepted when the last
process closes the socket. Workers share a socket with their parent process, which closes it a moment after they have
ended. A paused socket takes no further connections: clients that try wait for a second, and then find another server,
or none.
"""

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

import uvicorn

# Options of Linux' setsockopt(2).
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27

# A program of classic BPF for the TCP segments that arrive at a listener: it drops those that begin a connection, which
# have SYN, but not ACK. Each instruction is a code, two jump distances and an operand.
_DROP_NEW = (
    (0x30, 0, 0, 13),  # Load the flags, byte 13 of the segment.
    (0x54, 0, 0, 0x12),  # Keep SYN and ACK.
    (0x15, 0, 1, 0x02),  # Skip one instruction unless that is SYN.
    (0x06, 0, 0, 0),  # Drop the segment.
    (0x06, 0, 0, 0xFFFF_FFFF),  # Accept the segment.
)


def pause(server: uvicorn.Server) -> None:
    """Makes the sockets of a server take no further connections; those under way are completed."""
    for listener in _listeners(server):
        if not _drop_new(listener):
            # A backlog of 0 is one connection; the system ignores further attempts.
            listener.listen(0)


def resume(server: uvicorn.Server) -> None:
    """Makes the sockets of a server take connections again, if another process that shares them has paused them."""
    for listener in _listeners(server):
        if _has_filters(listener):
            # Usually there is no filter.
            with suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        listener.listen(server.config.backlog)


def _drop_new(listener: socket.socket) -> bool:
    """Attaches the filter to a socket; returns whether the system has such filters, which some sandboxes lack."""
    if not _has_filters(listener):
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_NEW))
    try:
        pointer = struct.pack("HP", len(_DROP_NEW), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
    except OSError:
        return False
    return True


def _has_filters(listener: socket.socket) -> bool:
    return sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6)


def _listeners(server: uvicorn.Server) -> Iterator[socket.socket]:
    """Yields each listener as a plain socket, as the sockets of the event loop lack most methods.

    Both have one descriptor: a copy could not be made while the process has as many open as it may.
    """
    for running in getattr(server, "servers", ()):
        for listener in running.sockets:
            plain = socket.socket(fileno=listener.fileno())
            try:
                yield plain
            finally:
                plain.detach()
