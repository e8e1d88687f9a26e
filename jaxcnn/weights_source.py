"""Finds the weights that the setting `init_from` names, and reads what network they are for. Imports no JAX."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors

from jaxcnn.config import ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.models.pretrained import NAMES, PATTERN, read_pretrained
from jaxcnn.paths import named_path
from jaxcnn.run.workdir import Workdir

SUFFIX = ".safetensors"
SHIPPED = Path(__file__).parents[1] / "server" / "models" / f"tiny_imagenet{SUFFIX}"
"""The weights that `init_from` calls `shipped`, beside the server's model in a checkout and in an installed package."""


class Shape(NamedTuple):
    """What weights are for.

    Attributes:
      model: settings of the network.
      side: side in pixels of the pictures that it was trained for.
      crop: share of a picture that it sees, if others trained it; None for ours.
    """

    model: ModelConfig
    side: int
    crop: float | None = None


def read_shape(source: str) -> Shape:
    """Reads the network of the weights that `init_from` names and the size of its pictures, without the weights.

    Raises:
      UserError: as `read_weights`.
    """
    if (pretrained := read_pretrained(source)) is not None:
        return Shape(pretrained.model, pretrained.side, pretrained.crop)
    path = find_weights(source)
    if path.is_dir():
        config = Workdir(path).read_config()
    else:
        with opened(path) as file:
            config = read_metadata(path, file).config
    return Shape(config.model, config.data.image_size)


def find_weights(source: str) -> Path:
    """Returns the path of a source: the folder of a run, or a file with the right suffix.

    Raises:
      UserError: it does not exist, or has another suffix.
    """
    others = f"{', '.join(map(repr, NAMES))}, {PATTERN}, a {SUFFIX} file or the workdir of a run"
    if source == "shipped":
        if not SHIPPED.is_file():
            raise UserError(f"init_from is 'shipped', but {SHIPPED} is missing; give {others}")
        return SHIPPED
    if not source:
        raise UserError(f"init_from is empty; give 'shipped', {others}")
    path = named_path(source, option="init_from")
    if not path.exists():
        close = difflib.get_close_matches(source, ("shipped", *NAMES), n=1)
        hint = f"did you mean {close[0]!r}? Otherwise " if close else ""
        raise UserError(f"init_from is {source!r}, which does not exist; {hint}give 'shipped', {others}")
    if not path.is_dir() and path.suffix != SUFFIX:
        raise UserError(
            f"init_from is {source!r}, which does not end with {SUFFIX}; `python -m export WORKDIR -o NAME{SUFFIX}` "
            "writes such a file"
        )
    return path


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file.

    Raises:
      UserError: it cannot be read as one, now or in the context.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a {SUFFIX} file ({reason}); export or download it again") from error


def read_metadata(path: Path, file: Any) -> Metadata:
    """Reads the metadata of an open file.

    Raises:
      UserError: `python -m export` has not written them.
    """
    try:
        return Metadata.from_props(file.metadata() or {}, required=("dataset", "trainings"))
    except UserError as error:
        raise not_ours(path, str(error)) from None


def not_ours(path: Path, reason: str) -> UserError:
    """Returns the error for a file that `python -m export` has not written."""
    return UserError(f"{path} was not made by `python -m export WORKDIR -o NAME{SUFFIX}`: {reason}")
