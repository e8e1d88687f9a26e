"""Settings from a file: TOML or JSON with some of them, or the `config.json` of another run."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxcnn.checksum import ChecksumError, unseal
from jaxcnn.config import Config
from jaxcnn.errors import UserError
from jaxcnn.typed_json import decode

SUFFIXES = (".toml", ".json")


def read_record(path: Path) -> Config | None:
    """Returns the settings of a run if the file is its record, its `config.json`, which is taken as a whole.

    Raises:
      UserError: the record is damaged.
    """
    if path.name != "config.json" or not (path.parent / "classes.json").exists():
        return None
    # It needs more libraries than presets do, which PyTorch's environment of the benchmark lacks.
    from jaxcnn.run.workdir import Workdir

    return Workdir(path.parent).read_config()


def read_settings(path: Path, base: Config) -> Config:
    """Returns the settings `base`, with those changed that a file names.

    The file has a table for each group of options, such as `[optim]`.

    Raises:
      UserError: the file cannot be read, or a setting in it is unknown or invalid.
    """
    found = _parse(path)
    # A network brings its defaults: the shape of the preset's network would contradict it.
    model = found.get("model")
    base = base.with_model(model.get("name") if isinstance(model, dict) else None)
    with _naming(path):
        return decode(Config, _merge(json.loads(json.dumps(dataclasses.asdict(base))), found), "config")


def read_init_from(path: Path, default: str | None) -> str | None:
    """Returns the `init_from` of a file of settings; `default` if it has none.

    Raises:
      UserError: the file cannot be read, or the setting is not a text.
    """
    found = _parse(path).get("init_from", default)
    with _naming(path):
        return None if found is None else decode(str, found, "config.init_from")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file to the error of a setting, which is named as its option."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('config.', '')}") from error


def read_source(path: Path) -> str | None:
    """Returns the `data.source` of a file of settings; None if it has none.

    Raises:
      UserError: the file cannot be read.
    """
    data = _parse(path).get("data")
    source = data.get("source") if isinstance(data, dict) else None
    return None if source is None else str(source)


def _parse(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML or JSON file, by its ending."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"config is {str(path)!r}; give a file that ends with {' or '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Editors on Windows begin files with a mark.
        found = tomllib.loads(text) if path.suffix == ".toml" else unseal(json.loads(text))
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError, ChecksumError) as error:
        raise UserError(f"config {path} is not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f'config {path} holds no settings; write them by name, such as {{"epochs": 10}}')
    # As on the command line: TOML has no null.
    if found.get("init_from") == "None":
        found["init_from"] = None
    return found


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested values with some of them changed."""
    merged = dict(base)
    for name, value in changes.items():
        inner = base.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
