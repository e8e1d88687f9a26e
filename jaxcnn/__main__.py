"""`python -m jaxcnn`: lists the commands, or runs one of them, such as `python -m jaxcnn train`."""

import runpy
import sys
from collections.abc import Sequence

MODULES = {
    "train": "jaxcnn.train",
    "evaluate": "jaxcnn.evaluate",
    "predict": "jaxcnn.predict",
    "inspect": "jaxcnn.inspect",
    "plan": "jaxcnn.plan",
    "export": "export",
}
"""The module behind each command."""

OVERVIEW = """\
jaxcnn trains image classifiers, exports them to one ONNX file, and serves that file.

  python -m jaxcnn.train [PRESET] [--OPTION VALUE ...] [--workdir DIR]
      Trains a classifier, evaluates it and exports it to DIR/model.onnx.
      The same command resumes. Without a preset it learns handwritten digits,
      in a minute or two and without a download.
  python -m jaxcnn.evaluate WORKDIR_OR_ONNX [--data.source PATH]
      Measures a trained model on its validation pictures, or on others.
  python -m jaxcnn.predict MODEL PICTURES... [--output results.csv]
      Classifies files, folders and zips of pictures.
  python -m jaxcnn.inspect PICTURES [--output findings.json]
      Says what is in a folder: classes, duplicates, leaks, broken files.
  python -m jaxcnn.plan [PRESET] --topology v5e:16x16
      Estimates what a training would take on TPUs or GPUs that are not here.
  python -m export WORKDIR [-o FILE.onnx | -o FILE.safetensors]
      Exports the best checkpoint, or its weights for other runs to start from.
  JAXCNN_MODEL=FILE.onnx uvicorn server.app:app
      Serves an exported classifier over HTTP, with a demo page.

Each command but the last lists its options with --help. Start with README.md.
"""


def main(arguments: Sequence[str]) -> None:
    """Prints the overview, or runs the command that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return
    command, *rest = arguments
    if command not in MODULES:
        print(f"python -m jaxcnn: there is no command {command!r}; there are: {', '.join(MODULES)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [command, *rest]  # The command reads its options from here.
    runpy.run_module(MODULES[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
