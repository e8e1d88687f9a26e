"""python -m export WORKDIR [-o model.onnx]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from export.errors import UnsupportedError, VerificationError
from export.workdir import export_workdir
from jaxcnn import cli
from jaxcnn.errors import UserError

PROG = "python -m export"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {PROG} --help")


def main(arguments: Sequence[str]) -> None:
    """Exports a run; a model that cannot be exported, or fails its verification, ends the process with status 1."""
    parser = _Parser(prog=PROG, description="Export a training run to one verified ONNX file.")
    parser.add_argument("workdir", type=Path, help="the run's folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: model.onnx in the run's folder")
    options = parser.parse_args(arguments)
    try:
        path = export_workdir(options.workdir, options.output)
    except (UnsupportedError, VerificationError) as error:
        sys.exit(f"{PROG}: {error}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, verified")


if __name__ == "__main__":
    cli.run(main, PROG)
