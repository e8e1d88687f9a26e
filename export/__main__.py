"""Exports a model: `python -m export WORKDIR_OR_NAME [-o model.onnx | -o NAME.safetensors] [--quantize int8] ...`."""

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from export.errors import UnsupportedError, VerificationError
from jaxcnn import cli, data, options
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.evaluation_data import check_same_preparation, data_config_of, with_classes_of
from jaxcnn.leakage import check_no_leakage
from jaxcnn.models.pretrained import NAMES, Pretrained, read_pretrained
from jaxcnn.run.workdir import Workdir
from jaxcnn.terminal import stage, warn
from jaxcnn.weights_source import SUFFIX

PROG = "python -m export"


@dataclass(frozen=True)
class Arguments:
    """The command line of an export."""

    output: Annotated[Path | None, options.Alias("-o")] = None
    """The file to write: NAME.onnx for a model, NAME.safetensors for weights to start another run from.
    None: model.onnx in the run's folder, or model.int8.onnx if quantized; for a network by name, NAME.onnx here."""
    features: bool = False
    """Add the output `features`: what the last layer sees, to search or cluster by."""
    heatmap: bool = False
    """Add the output `heatmap`: where in the picture the evidence for the top class is."""
    views: Literal[1, 2] = 1
    """How many views of a picture the file averages: 2 adds its mirror image, which takes twice the time. Only for runs
    that were trained with mirrored pictures."""
    quantize: Literal["int8"] | None = None
    """Quantize the model to 8-bit integers, with ranges from the run's training pictures. A network by name needs
    pictures of its classes, or of some: give --data.source."""
    tolerance: float = 0.01
    """How far top-1 accuracy may fall through quantization, from 0 to 1; otherwise no file is written."""
    average: tuple[str, ...] = ()
    """Workdirs or .safetensors files whose weights are averaged with the weights of the run, for a .safetensors file.
    Average trainings of the same network on the same pictures that started from the same weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which pictures to quantize with; the run's unless an option says otherwise."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise UserError(f"tolerance is {self.tolerance}; give a share of the pictures, from 0 to 1")
        if self.output is not None and self.output.suffix not in (".onnx", SUFFIX):
            raise UserError(f"{self.output} does not end with .onnx or {SUFFIX}; give such a name with -o")
        if self.weights is not None:
            for option in ("quantize", "features", "heatmap", "views"):
                if getattr(self, option) != getattr(Arguments, option):
                    raise UserError(f"--{option} is for a model, not for the weights in {self.weights}; leave it out")
        elif self.average:
            raise UserError(f"--average is for weights; give a name that ends with {SUFFIX} with -o")

    @property
    def weights(self) -> Path | None:
        """The output if it is a file of weights."""
        return self.output if self.output is not None and self.output.suffix == SUFFIX else None


def main(arguments: Sequence[str]) -> None:
    """Exports a run or a network by name. Exits with status 1 if it cannot be exported or fails its verification."""
    if not arguments or arguments[0].startswith("-"):
        _parse(DataConfig(), arguments, unknown={"data.": "as in training"})  # Only for --help
        raise UserError(f"give the folder of a run or the name of a network first, such as: {PROG} runs/digits")
    name, *rest = arguments
    pretrained = read_pretrained(name)
    try:
        path = _export_run(Path(name), rest) if pretrained is None else _export_pretrained(name, pretrained, rest)
    except (UnsupportedError, VerificationError) as error:
        sys.exit(f"{PROG}: {error}")
    size = f"{path}: {path.stat().st_size / 1e6:.1f} MB"
    if path.suffix == SUFFIX:
        print(f"{size}, to train from with --init_from {path}")
    else:
        print(f"{size}, verified; {path.with_suffix('') / 'README.md'} describes it")


def _export_run(workdir: Path, arguments: Sequence[str]) -> Path:
    """Exports the best checkpoint of a run as the options say."""
    if not workdir.exists():
        if close := difflib.get_close_matches(str(workdir), NAMES, n=1):
            raise UserError(f"{workdir} does not exist; did you mean {close[0]!r}?")
        names = ", ".join(NAMES)
        raise UserError(f"{workdir} does not exist; give the workdir of a training run, {names} or timm:NAME")
    run = Workdir(workdir)
    recorded = run.read_data_config()
    parsed = _parse_for(recorded, arguments)
    if parsed.quantize is not None:
        data.check_source(parsed.data)
    with stage("loading libraries"):
        from export.workdir import Quantization, export_weights, export_workdir

    if parsed.weights is not None:
        return export_weights(workdir, parsed.weights, average=parsed.average)
    # Pictures are loaded, and checked, for quantization only.
    quantization = None
    if parsed.quantize is not None:
        with stage(f"reading the pictures of {parsed.data.source}"):
            dataset = data.load(parsed.data)
        pictures = run.read_pictures()
        if warning := check_no_leakage(dataset, parsed.data, trained_on=recorded, fingerprint=pictures):
            warn(warning)
        quantization = Quantization(dataset=dataset, tolerance=parsed.tolerance)
    with _exporting(parsed):
        return export_workdir(
            workdir,
            parsed.output,
            features=parsed.features,
            heatmap=parsed.heatmap,
            views=parsed.views,
            quantization=quantization,
        )


def _export_pretrained(name: str, pretrained: Pretrained, arguments: Sequence[str]) -> Path:
    """Exports weights that others trained as the options say."""
    parsed = _parse_for(pretrained.data_config, arguments)
    if parsed.average:
        raise UserError(f"--average is for the weights of runs, not for {name}; leave it out")
    if parsed.views != 1:
        raise UserError(f"--views is for runs, not for {name}; leave it out")
    if parsed.quantize is not None and not parsed.data.source:
        raise UserError(
            f"--quantize needs pictures that set the ranges of {name}, and others to measure it on; give "
            "--data.source with a folder for each of its classes, or for some of them"
        )
    if parsed.quantize is not None:
        data.check_source(parsed.data)
    with stage("loading libraries"):
        from export.pretrained import export_pretrained, export_pretrained_weights
        from export.workdir import Quantization

    if parsed.weights is not None:
        return export_pretrained_weights(name, pretrained, parsed.weights)
    quantization = None
    if parsed.quantize is not None:
        with stage(f"reading the pictures of {parsed.data.source}"):
            dataset = with_classes_of(data.load(parsed.data), pretrained)
        quantization = Quantization(dataset=dataset, tolerance=parsed.tolerance)
    with _exporting(parsed):
        return export_pretrained(
            name,
            pretrained,
            parsed.output,
            features=parsed.features,
            heatmap=parsed.heatmap,
            quantization=quantization,
        )


def _exporting(arguments: Arguments) -> AbstractContextManager[None]:
    return stage("exporting and verifying the model" if arguments.quantize is None else "quantizing and verifying")


def _parse_for(trained_on: DataConfig, arguments: Sequence[str]) -> Arguments:
    """Parses the options of the export of a model.

    Raises:
      UserError: an option is invalid or without effect, or the pictures to quantize with would be prepared in another
        way than the file says.
    """
    parsed = _parse(trained_on, arguments)
    if parsed.quantize is not None:
        check_same_preparation(parsed.data, trained_on)
        return parsed
    changed = [
        f"data.{field.name}"
        for field in dataclasses.fields(DataConfig)
        if getattr(parsed.data, field.name) != getattr(trained_on, field.name)
    ]
    if parsed.tolerance != Arguments.tolerance:
        changed.append("tolerance")
    if changed:
        raise UserError(f"--{changed[0]} has no effect without --quantize int8; leave it out, or quantize the model")
    return parsed


def _parse(defaults: DataConfig, arguments: Sequence[str], *, unknown: Mapping[str, str] | None = None) -> Arguments:
    source = options.peek(arguments, "data.source", None)
    return options.parse(
        Arguments(data=data_config_of(source, trained_on=defaults)),
        arguments,
        prog=f"{PROG} WORKDIR_OR_NAME",
        description="Exports a training run, or a network that others trained by its name, to one verified ONNX file, "
        "with a model card and a description beside it, or its weights to a safetensors file. The data options are for "
        "--quantize, and default to the data that the run was trained on.",
        unknown=unknown,
    )


if __name__ == "__main__":
    cli.run(main, PROG)
