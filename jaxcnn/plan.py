"""Says what a run would take on machines that are not here: `python -m jaxcnn.plan PRESET --topology v5e:16x16`."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from jaxcnn import cli, options
from jaxcnn.config import CROP, Config
from jaxcnn.defaults import find_defaults
from jaxcnn.errors import UserError
from jaxcnn.presets import take_preset
from jaxcnn.terminal import stage
from jaxcnn.topology import find_topology

PROG = "python -m jaxcnn.plan"
_CLASSES = {"digits": 10, "tiny_imagenet": 200}
"""Classes of the data sets that presets name; others are taken to have as many as ImageNet."""


@dataclass(frozen=True)
class Arguments:
    """The command line of a plan."""

    config: Annotated[Config, options.Unprefixed] = field(default_factory=Config)
    config_file: Annotated[Path | None, options.Named("config")] = None
    """TOML or JSON file with settings, or the config.json of a run, as in training."""
    topology: str = "v5e:2x2"
    """Machines to compile for: a slice of TPUs such as v5e:16x16, v5p:4x4x4 or v6e:2x4, the GPUs of a host such as
    h100:8, or hosts and the GPUs of each such as h100:2x8."""
    classes: int | None = None
    """Number of classes. None: as the preset's data set has, 1,000 for pictures of your own."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 2:
            raise UserError(f"classes is {self.classes}; it must be at least 2, or None")


def main(arguments: Sequence[str]) -> None:
    """Compiles the step that the command line describes, and prints what it takes."""
    parsed = parse(arguments)
    with stage("loading libraries"):
        import jax

        from jaxcnn.plan_summary import describe
        from jaxcnn.planning import plan

    # An accelerator that is here may be busy, and is not needed.
    jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    source = parsed.config.data.source
    classes = parsed.classes or _CLASSES.get(source, 1_000)
    with stage(f"compiling the step for {parsed.topology}"):
        found = plan(parsed.config, find_topology(parsed.topology), classes=classes)
    print(json.dumps(found.to_json()) if parsed.json else describe(found))


def parse(arguments: Sequence[str]) -> Arguments:
    """Reads the command line of a plan.

    Args:
      arguments: the name of a preset, if any, and options that change its settings.

    Raises:
      UserError: an unknown preset, option, value or topology (the message lists the known ones), or initial weights
        that are missing or belong to another network than an option or the file of `--config` asks for.
    """
    preset, arguments = take_preset(arguments)
    # The network of a preset with initial weights is known without them.
    found = find_defaults(preset, arguments, must_exist=False)
    parsed = options.parse(
        Arguments(found.config),
        arguments,
        prog=f"{PROG} [PRESET]",
        description="Compiles the training step of a preset for machines that need not be here, and prints whether it "
        "fits their memory, what it takes, and an estimate of its speed. Nothing is measured. Options change the "
        "settings as in training.",
    )
    find_topology(parsed.topology)
    found.check(parsed.config)
    crop = found.weights and found.weights.crop
    data = parsed.config.data.resolved(crop=crop or CROP)
    return dataclasses.replace(parsed, config=dataclasses.replace(parsed.config, data=data))


if __name__ == "__main__":
    cli.run(main, PROG)
