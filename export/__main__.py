"""python -m export WORKDIR [-o model.onnx | -o weights.safetensors] [--quantize int8] [--features] [--heatmap]."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from export.errors import UnsupportedError, VerificationError
from export.workdir import Quantization, export_weights, export_workdir
from jaxcnn import cli, data, options
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.evaluation_data import data_config_of
from jaxcnn.leakage import check_no_leakage
from jaxcnn.run.workdir import Workdir
from jaxcnn.weights import SUFFIX

PROG = "python -m export"


@dataclass(frozen=True)
class Arguments:
    """What to export, and how."""

    output: Annotated[Path | None, options.Alias("-o")] = None
    """The file: a model if its name ends with .onnx, weights to start another run from if with .safetensors.
    None: model.onnx in the run's folder, model.int8.onnx if quantized."""
    features: bool = False
    """Adds the output `features`, the mean of each channel of the last feature map."""
    heatmap: bool = False
    """Adds the output `heatmap`, where the evidence for the top class is."""
    quantize: Literal["int8"] | None = None
    """Calculate in eight-bit integers, calibrated on the run's training pictures."""
    tolerance: float = 0.01
    """How much top-1 accuracy may fall when quantized, from 0 to 1."""
    average: tuple[str, ...] = ()
    """Other weights, workdirs or .safetensors files: the mean of them and the run's is written to a .safetensors file.
    They are to be of the same network and pictures, and of trainings that began with the same weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """The pictures to quantize with; by default the run's."""

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise UserError(f"tolerance is {self.tolerance}; give a share of the pictures, from 0 to 1")
        if self.output is not None and self.output.suffix not in (".onnx", SUFFIX):
            raise UserError(f"{self.output} does not end with .onnx or {SUFFIX}; give such a name with -o")
        if self.weights is not None:
            for option in ("quantize", "features", "heatmap"):
                if getattr(self, option):
                    raise UserError(f"--{option} is for a model, not for the weights in {self.weights}; leave it out")
        elif self.average:
            raise UserError(f"--average is for weights; give a name that ends with {SUFFIX} with -o")

    @property
    def weights(self) -> Path | None:
        """The file, if it is one of weights."""
        return self.output if self.output is not None and self.output.suffix == SUFFIX else None


def main(arguments: Sequence[str]) -> None:
    """Exports a run; a model that cannot be exported, or fails its verification, ends the process with status 1."""
    if not arguments or arguments[0].startswith("-"):
        _parse(DataConfig(), arguments)  # prints the help and ends, if that is asked for
        raise UserError(f"give the folder of a run first, such as: {PROG} runs/digits")
    workdir = Path(arguments[0])
    run = Workdir(workdir)
    recorded = run.read_data_config()
    parsed = _parse(recorded, arguments[1:])
    if parsed.weights is not None:
        path = export_weights(workdir, parsed.weights, average=parsed.average)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, to train from with --init_from {path}")
        return
    quantization = None
    if parsed.quantize is not None:
        dataset = data.load(parsed.data)
        check_no_leakage(dataset, parsed.data, trained_on=recorded, fingerprint=run.read_pictures())
        quantization = Quantization(dataset=dataset, tolerance=parsed.tolerance)
    try:
        path = export_workdir(
            workdir, parsed.output, features=parsed.features, heatmap=parsed.heatmap, quantization=quantization
        )
    except (UnsupportedError, VerificationError) as error:
        sys.exit(f"{PROG}: {error}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, verified; {path.with_suffix('') / 'README.md'} describes it")


def _parse(defaults: DataConfig, arguments: Sequence[str]) -> Arguments:
    source = options.peek(arguments, "data.source", None)
    return options.parse(
        Arguments(data=data_config_of(source, trained_on=defaults)),
        arguments,
        prog=f"{PROG} WORKDIR",
        description="Exports a training run to one verified ONNX file, with a model card and a description beside it, "
        "or its weights to a safetensors file.",
    )


if __name__ == "__main__":
    cli.run(main, PROG)
