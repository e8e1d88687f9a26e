"""python -m export WORKDIR [-o model.onnx]."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from export.errors import UnsupportedError, VerificationError
from export.workdir import UserError, export_workdir


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m export --help")


def main() -> int:
    """Exports a run; returns the process's status."""
    parser = _Parser(prog="python -m export", description="Export a training run to one verified ONNX file.")
    parser.add_argument("workdir", type=Path, help="the run's folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: model.onnx in the run's folder")
    try:
        arguments = parser.parse_args()
        path = export_workdir(arguments.workdir, arguments.output)
    except (UserError, UnsupportedError, VerificationError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
