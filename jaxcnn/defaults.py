"""The settings that the options of a command line change: a preset, then its initial weights, then a file."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxcnn import options
from jaxcnn.config import SHAPE, Config
from jaxcnn.config_file import read_init_from, read_record, read_settings
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path
from jaxcnn.presets import PRESETS
from jaxcnn.run.workdir import Workdir
from jaxcnn.weights_source import Shape, read_shape


class Defaults(NamedTuple):
    """What the options of a command line change.

    Attributes:
      config: the settings.
      name: of the preset or the file.
      weights: what the initial weights are for; None without, or if they were not looked up.
    """

    config: Config
    name: str
    weights: Shape | None

    def check(self, config: Config) -> None:
        """Raises a `UserError` that names the first setting that contradicts the network of the initial weights."""
        if self.weights is None:
            return
        for name in SHAPE:
            given, found = getattr(config.model, name), getattr(self.weights.model, name)
            if given != found:
                raise UserError(
                    f"model.{name} is {given!r}, but {found!r} in the weights of {config.init_from}; leave out "
                    f"model.{name}, or start from no weights by --init_from None"
                )


def find_defaults(preset: str, arguments: Sequence[str], *, must_exist: bool = True) -> Defaults:
    """Returns the settings that the options of a command line change.

    The network and its defaults depend on the initial weights and on `model.name`, which are looked up in the options
    and in the file of `--config`. The record of a run takes the place of the preset.

    Args:
      preset: its name.
      arguments: the options.
      must_exist: look up the initial weights of the preset or the record too, whose network it names already.

    Raises:
      UserError: the file or the initial weights are missing or damaged, or a setting in the file is unknown or invalid.
    """
    config, name, file = PRESETS[preset](), preset, None
    if (text := options.peek(arguments, "config", "None")) != "None":
        file = named_path(text, option="config")
        # The record of a run has the name of its folder, which the path may leave out.
        name = (file.name == "config.json" and Path(os.path.abspath(file)).parent.name) or file.stem
        if (record := read_record(file)) is not None:
            config, file = record, None

    # Options say more than the file, and the file more than the preset.
    init_from: str | None = options.peek(
        arguments, "init_from", config.init_from if file is None else read_init_from(file, config.init_from)
    )
    weights = None
    if init_from in (None, "None"):
        config = config.without_weights()
    else:
        # Help is printed without them.
        if not {"-h", "--help"} & set(arguments) and (must_exist or init_from != config.init_from):
            weights = _find_weights(init_from, options.peek(arguments, "workdir", f"runs/{name}"))
        config = _with_weights(config, init_from, weights)

    if file is not None:
        config = read_settings(file, config)
    return Defaults(config.with_model(options.peek(arguments, "model.name", None)), name, weights)


def _with_weights(config: Config, init_from: str, weights: Shape | None) -> Config:
    """Returns the settings of a preset or a record with initial weights, and what they bring."""
    if weights is not None:
        # Settings with initial weights have pictures of the size that those were trained with.
        side = config.data.image_size if config.init_from in (None, init_from) else weights.side
        config = dataclasses.replace(
            config,
            model=config.model.with_shape_of(weights.model),
            data=dataclasses.replace(config.data, image_size=side),
        )
    return dataclasses.replace(config, init_from=init_from)


def _find_weights(init_from: str, workdir: str) -> Shape:
    """Describes the `init_from` weights; for a run that is resumed, as it is recorded."""
    folder = Workdir(named_path(workdir, option="workdir"))
    # The weights may be gone by now; a resumed run does not need them.
    if folder.has_run:
        recorded = folder.read_config()
        if recorded.init_from == init_from:
            return Shape(recorded.model, recorded.data.image_size)
    return read_shape(init_from)
