"""Trains an image classifier: `python -m jaxcnn.train [PRESET] [--field.name VALUE ...] [--workdir DIR]`."""

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from jaxcnn import cli, data, options
from jaxcnn.config import Config
from jaxcnn.container import is_container
from jaxcnn.defaults import find_defaults
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.paths import check_address, named_path
from jaxcnn.presets import PRESETS, take_preset
from jaxcnn.run.describe import counted
from jaxcnn.run.tracking import check_clients
from jaxcnn.terminal import console, stage

PROG = "python -m jaxcnn.train"
MEMORY = (
    "close other programs or lower --resolutions and run again to resume, or start with a smaller --batch_size or "
    "--data.image_size in another --workdir"
)
"""What to do if there is not enough memory."""


@dataclass(frozen=True)
class Arguments:
    """The command line of a training run."""

    config: Annotated[Config, options.Unprefixed]
    """Settings of the run."""
    workdir: Path
    """Folder of the run. A run that is already in it is resumed."""
    config_file: Annotated[Path | None, options.Named("config")] = None
    """TOML or JSON file with settings, which override the preset and are overridden by options; also the
    config.json of another run, which is taken as a whole."""
    note: str | None = None
    """Text that is kept in the workdir and shown where runs are compared. None: the note of the workdir, if it has
    one."""
    bucket: str | None = None
    """Copy of the workdir in a bucket, such as s3://BUCKET/runs/1 or gs://BUCKET/runs/1. What is new is sent after
    every checkpoint and at the end; a workdir without a run is fetched from there first. Only one process at a time may
    train with it."""
    dry_run: bool = False
    """Load the data, take a few steps, print to standard output what the run will take, and stop; no workdir is
    created."""
    quiet: bool = False
    """Print nothing but warnings and errors."""
    json: bool = False
    """Print the records of the run to standard output, as lines of JSON; with --dry_run, what it found."""

    def __post_init__(self) -> None:
        if self.bucket is not None:
            check_address(self.bucket, option="bucket")


def main(arguments: Sequence[str]) -> None:
    """Trains as the command line says, and prints the result."""
    # A mistake is reported before JAX is imported, which takes seconds.
    parsed = parse(arguments)
    console.quiet = parsed.quiet
    if parsed.config.parallel.coordinator is None:  # Else the other processes would wait for this one.
        check_clients(parsed.config.log)
        data.check_source(parsed.config.data)
    with stage("loading libraries"):
        from jaxcnn.processes import ending_together, is_leader
        from jaxcnn.rehearsal import rehearse
        from jaxcnn.training import train

    # Before the first large array.
    keep_freed_memory()
    if parsed.dry_run:
        with ending_together(PROG, memory=MEMORY):
            for finding in rehearse(parsed.config, parsed.workdir):
                if is_leader():
                    print(json.dumps(finding.record) if parsed.json else cli.printable(finding.text), flush=True)
        return
    with ending_together(PROG, memory=MEMORY):
        echo = sys.stdout if parsed.json else None
        evaluation = train(parsed.config, parsed.workdir, note=parsed.note, bucket=parsed.bucket, echo=echo)
    if parsed.json and is_leader():
        scores = evaluation.scalars() if evaluation else {}
        print(json.dumps({"kind": "result", "finished": bool(evaluation), "workdir": str(parsed.workdir), **scores}))
    if evaluation is not None:
        what = "model" if parsed.config.is_frozen else "best checkpoint, selected on the same pictures"
        console.print(
            f"{what}, calibrated: validation top-1 {evaluation.top1:.4f}, loss {evaluation.loss:.4f} "
            f"on {counted(evaluation.count, 'picture')}",
            soft_wrap=True,
        )
        for name in ("report.html", "model.onnx"):
            console.print(f"  {parsed.workdir / name}", soft_wrap=True)
    elif is_container() and is_leader():
        # There, status 0 means a complete run: nothing would start it again.
        sys.exit(128 + signal.SIGTERM)


def parse(arguments: Sequence[str]) -> Arguments:
    """Reads the command line of a training run.

    Args:
      arguments: the name of a preset, if any, and options that change its settings.

    Raises:
      UserError: an unknown preset, option or value (the message lists the known ones), or initial weights that are
        missing or belong to another network than an option or the file of `--config` asks for.
    """
    preset, arguments = take_preset(arguments)
    found = find_defaults(preset, arguments)
    default = Arguments(found.config, Path("runs") / found.name)
    workdir = options.peek(arguments, "workdir", str(default.workdir))
    summaries = "\n".join(f"  {name}: {(make.__doc__ or '').splitlines()[0]}" for name, make in PRESETS.items())
    parsed = options.parse(
        default,
        arguments,
        prog=f"{PROG} [PRESET]",
        description=f"Trains an image classifier. Options change the settings of a preset.\n\n{summaries}",
    )
    # Options and the file may contradict the initial weights.
    found.check(parsed.config)
    # The text: as a path, an empty one would be the working directory, and an address a relative path.
    return dataclasses.replace(parsed, workdir=named_path(workdir, option="workdir"))


if __name__ == "__main__":
    cli.run(main, PROG, memory=MEMORY)
