"""The command `jaxcnn`, also `python -m jaxcnn`: lists the commands, or runs one of them, such as `jaxcnn train`."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcnn.cli import discard_output
from jaxcnn.commands import COMMANDS, explain_missing

OVERVIEW = """\
jaxcnn trains image classifiers, exports them to one ONNX file, and serves that file.

  {prog} train [PRESET] [--OPTION VALUE ...] [--workdir DIR]
      Trains, evaluates and exports a classifier. The same command resumes it.
      Without a preset it learns handwritten digits in a minute or two.
  {prog} evaluate WORKDIR_OR_ONNX [--data.source PATH]
      Measures a trained model on its validation pictures, or on others.
  {prog} predict MODEL PICTURES... [--output results.csv]
      Classifies files, folders and zips of pictures.
  {prog} inspect PICTURES [--output findings.json]
      Says what is in a folder: classes, duplicates, leaks, broken files.
  {prog} plan [PRESET] --topology v5e:16x16
      Estimates what a training would take on TPUs or GPUs that are not here.
  {prog} sweep [PRESET] --over OPTION=VALUE,VALUE ... [--seeds N]
      Trains a run for each combination of values, and compares them.
  {prog} compare RUN [RUN ...] [--output FILE.html]
      Compares runs: settings, metrics, a paired test, curves, cost.
  {prog} export WORKDIR [-o FILE.onnx | -o FILE.safetensors]
      Exports the best checkpoint so far, also in 8-bit integers, or its weights.
  {prog} serve [MODEL] [--port PORT]
      Serves an exported classifier over HTTP, with a demo page.

Each command lists its options with --help. Start with README.md.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the overview, or runs the command that the first argument names.

    Args:
      arguments: of the command line; None: those that the process was started with.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # The console command exists only where the package is installed.
    prog = "jaxcnn" if Path(sys.argv[0]).stem == "jaxcnn" else "python -m jaxcnn"
    if not arguments or arguments[0] in ("-h", "--help"):
        try:
            print(OVERVIEW.format(prog=prog), end="", flush=True)
        except BrokenPipeError:
            discard_output()
        return
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"{prog}: there is no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    command = COMMANDS[name]
    sys.argv = [name, *rest]  # The command reads its options from here.
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        reason = explain_missing(error, command)
        if reason is None:
            raise
        print(f"{prog} {name}: {reason}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
