"""The commands, and what they say if a package that they need is not installed."""

from typing import NamedTuple

from jaxcnn.extras import install_command


class Command(NamedTuple):
    """A command.

    Attributes:
      module: what runs it, as `python -m MODULE` does.
      extra: the part of the package that it needs, as in `pip install 'jaxcnn[train]'`.
    """

    module: str
    extra: str


COMMANDS = {
    "train": Command("jaxcnn.train", "train"),
    "evaluate": Command("jaxcnn.evaluate", "train"),
    "predict": Command("jaxcnn.predict", "predict"),
    "inspect": Command("jaxcnn.inspect", "train"),
    "plan": Command("jaxcnn.plan", "train"),
    "sweep": Command("jaxcnn.sweep", "train"),
    "compare": Command("jaxcnn.compare", "train"),
    "export": Command("export", "export"),
    "serve": Command("jaxcnn.serve", "serve"),
}

PACKAGES = ("jaxcnn", "export", "server")
"""The packages of this project; a command that misses one of their modules is broken."""


def explain_missing(error: BaseException, command: Command) -> str | None:
    """Returns which package a command misses, and how to install it; None for every other error."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or missing in ("", *PACKAGES):
        return None
    return f"the package {missing} is not installed; run: {install_command(command.extra)}"
