"""Serves an exported classifier over HTTP: `jaxcnn serve [MODEL] [--port PORT]`. Imports no JAX."""

import argparse
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn.main

from jaxcnn import cli
from jaxcnn.errors import UserError

PROG = "jaxcnn serve"
APPLICATION = "server.app:app"
"""Named, not imported: nothing of `jaxcnn` is needed where a model is served in another way."""
ABOUT = """\
Serves an exported classifier over HTTP, with a demo page. MODEL is an .onnx file, the workdir of a
run that has exported one, or a folder of several; without it, the variable JAXCNN_MODEL names the
model. All other settings of the server are environment variables too; server/README.md lists
them. The options belong to uvicorn, whose APP is given already:
"""


def main(arguments: Sequence[str]) -> None:
    """Serves as the command line says, until a signal ends the server."""
    if {"-h", "--help"} & set(arguments):
        print(ABOUT)
    elif arguments and not arguments[0].startswith("-"):
        model, *arguments = arguments
        os.environ["JAXCNN_MODEL"] = find_model(model)
    check_port(arguments)
    uvicorn.main.main([APPLICATION, *arguments], prog_name=f"{PROG} [MODEL]")


def find_model(text: str) -> str:
    """Returns the model that `MODEL` stands for: the exported file of a workdir, or what was given.

    Raises:
      UserError: a folder without an exported model, or nothing that could be a model.
    """
    folder = Path(text)
    if not folder.exists() and not any(sign in text for sign in (",", "=", ":")):
        raise UserError(f"there is no {text}; give the workdir of a run that has exported its model, or an .onnx file")
    if not folder.is_dir():
        return text  # One file, several with names or without, or a URL: the server checks them.
    exported = folder / "model.onnx"
    if exported.exists():
        return str(exported)
    if any(folder.glob("[!.]*.onnx")):
        return text  # Several models, of which the server serves all.
    raise UserError(f"{text} has no model.onnx; write one with: python -m export {text}")


def check_port(arguments: Sequence[str]) -> None:
    """Raises UserError if there is no such port, or another program listens on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # uvicorn reads its options from the environment, too.
    parser.add_argument("--host", default=os.environ.get("UVICORN_HOST", "127.0.0.1"))
    parser.add_argument("--port", default=os.environ.get("UVICORN_PORT", "8000"))
    given, others = parser.parse_known_args(arguments)
    # Another socket than that of a port, and what uvicorn refuses by itself.
    words = {word.partition("=")[0] for word in others}
    is_elsewhere = {"--fd", "--uds"} & words or os.environ.get("UVICORN_FD") or os.environ.get("UVICORN_UDS")
    if is_elsewhere or {"--help", "-h"} & words or not given.port.isdigit():
        return
    if int(given.port) >= 2**16:
        # uvicorn would take the remainder, and name the port that was given.
        raise UserError(f"there is no port {given.port}; give a --port up to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in given.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As uvicorn opens it: connections that were closed a moment ago do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((given.host, int(given.port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {given.port} of {given.host} is in use; stop the program that listens there, or give "
                    "another --port"
                ) from error
            if error.errno == errno.EACCES:
                raise UserError(
                    f"port {given.port} may not be opened by this user; give a --port from 1024 on"
                ) from error


if __name__ == "__main__":
    cli.run(main, PROG)
