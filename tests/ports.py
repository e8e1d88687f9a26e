"""Ports for the servers that tests start."""

import random
import socket

_RANGE = range(20_000, 30_000)
"""Below the ports that systems give to clients, on Linux from 32,768 on: any connection could take one of those before
the server does."""


def free_port() -> int:
    """Returns a port on which nothing listens."""
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {_RANGE[0]} to {_RANGE[-1]} is free")
