"""The server as a service: `python -m server.deploy.container serve`, and `health` for the image's HEALTHCHECK.

Containers of SageMaker are started as `IMAGE serve`, listen on port 8080, and find models in /opt/ml/model. systemd
may pass a socket that already listens.
"""

import contextlib
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

# Folders that may hold models, the first that has one wins: SageMaker's, then that of the image.
_FOLDERS = (Path("/opt/ml/model"), Path("/srv/model"))

_HEALTH_SECONDS = 2

# Without http_proxy, which is for other machines.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# The number of the first socket that systemd passes (sd_listen_fds).
_FIRST_SOCKET = 3


class ContainerError(Exception):
    """A container that cannot start as it is configured. The message is one line for the operator."""


def find_models(folders: Sequence[Path] = _FOLDERS) -> Path | None:
    """Returns what to serve from the first folder that has ONNX files: its only one, or the folder with all of them.

    Raises:
      ContainerError: the ONNX files are in several folders.
    """
    for folder in folders:
        # SageMaker unpacks archives, whose files may be in a folder.
        found = sorted(folder.rglob("[!.]*.onnx"))
        parents = {path.parent for path in found}
        if len(parents) > 1:
            raise ContainerError(
                f"{folder} has ONNX files in {len(parents)} folders: put them into one, or set JAXCNN_MODEL to "
                "NAME=FILE,NAME=FILE."
            )
        if found:
            return found[0] if len(found) == 1 else found[0].parent
    return None


def read_port(environment: Mapping[str, str]) -> int:
    """Returns the port to listen on: PORT, as Cloud Run and others set it, or 8080.

    Raises:
      ContainerError: PORT is not a port.
    """
    text = environment.get("PORT") or "8080"
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise ContainerError(f"PORT is {text!r}: set it to an integer from 1 to 65535, or unset it.")
    return int(text)


def find_host() -> str:
    """Returns the host that uvicorn listens on: all addresses of IPv4 and IPv6, or of IPv4 alone where IPv6 is off."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104
    # Two sockets. Event loops restrict "::" to IPv6; one socket for both would give IPv4 clients other addresses, such
    # as ::ffff:10.0.0.1, which are in no network of FORWARDED_ALLOW_IPS.
    return ""


def find_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """Returns the socket that systemd has passed to this process; None if it has passed no socket.

    It outlives the process, so connections wait in it while the service restarts.

    Raises:
      ContainerError: systemd has passed several sockets.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    if (count := environment.get("LISTEN_FDS")) != "1":
        raise ContainerError(f"systemd passes {count} sockets: leave one ListenStream= in the socket unit.")
    return socket.socket(fileno=_FIRST_SOCKET)


def serve(port: int) -> None:
    """Serves until SIGTERM, in this process.

    Raises:
      ContainerError: the models are in several folders, or systemd passes several sockets.
    """
    # HEALTHCHECK imports this module every few seconds, and must not load a web server for it.
    import uvicorn

    from server import log

    # Before the event loop is created. The log has no colors, so nothing asks a closed stream whether it is a terminal.
    log.open_closed_streams()
    if not os.environ.get("JAXCNN_MODEL") and (models := find_models()) is not None:
        os.environ["JAXCNN_MODEL"] = str(models)
    # Load balancers of AWS keep idle connections for 60 seconds: the server must not be the first to close one.
    config = uvicorn.Config(
        "server.app:app", host=find_host(), port=port, server_header=False, timeout_keep_alive=75, use_colors=False
    )
    listener = find_socket(os.environ)
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener] if listener is not None else None)
    if not server.started:
        # The log says why.
        sys.exit(1)


def is_healthy(port: int) -> bool:
    """Returns whether the server of this container responds."""
    try:
        with _OPENER.open(f"http://127.0.0.1:{port}/healthz", timeout=_HEALTH_SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands `serve` and `health`, and returns the exit status."""
    try:
        port = read_port(os.environ)
        if list(arguments) == ["health"]:
            return 0 if is_healthy(port) else 1
        if list(arguments) != ["serve"]:
            raise ContainerError(f"There is no command {' '.join(arguments)!r}: use serve or health.")
        serve(port)
    except ContainerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
