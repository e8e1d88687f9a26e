"""Fuzzes a target, guided by coverage: `python -m tests.fuzz TARGET [--seconds N] [--folder FOLDER] [FILE ...]`.

It needs atheris: `pip install atheris`. It ends with an error at the first fault, and writes the bytes that lead to it
into a file of the current folder; given such files, it runs the target on them alone. Further arguments, such as
`-jobs=2`, go to libFuzzer.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tests.fuzz import FOLDER

PARSERS = ("jaxcnn.checksum", "jaxcnn.errors", "jaxcnn.typed_json")
INSTRUMENTED = {
    "picture": ("PIL", "jaxcnn.data.decoding", "jaxcnn.data.resize", "server.exif", "server.picture", "server.resize"),
    "form": ("python_multipart", "server.protocols"),
    "inference": ("server.picture", "server.protocols"),
    "base64": ("server.protocols",),
    "zip": ("jaxcnn.data.sources", "zipfile"),
    "folder": ("jaxcnn.data.sources",),
    "safetensors": ("jaxcnn.metadata", "jaxcnn.run", "jaxcnn.weights", *PARSERS),
    "pth": ("jaxcnn.models.pretrained", "zipfile"),
    "onnx": ("jaxcnn.onnx_file", "server.integrity", "server.model", "server.resize", *PARSERS),
    "record": ("jaxcnn.bulk", "jaxcnn.calibration", "jaxcnn.config", "jaxcnn.data", "jaxcnn.run", *PARSERS),
    "http": ("server.connection", "tests.fuzz.connection", "uvicorn.protocols"),
}
"""Packages whose coverage guides the search, by target. Others would make the start slow.

Nothing of them may be imported before: what is imported already is not measured.
"""


def main(arguments: Sequence[str]) -> None:
    """Runs libFuzzer, which ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(path.name for path in FOLDER.iterdir()), help="what to fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--folder", help="where inputs that reach new code are kept, for the next time")
    options, further = parser.parse_known_args(arguments)
    try:
        import atheris
    except ImportError:
        sys.exit("python -m tests.fuzz: atheris is missing; run pip install atheris")
    with atheris.instrument_imports(include=list(INSTRUMENTED[options.target])):
        from tests.fuzz.targets import TARGETS
    limits = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=16384"]
    if all(argument.startswith("-") for argument in further):
        if not options.folder:
            # libFuzzer ends its process, which cannot remove the folder.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                command = [sys.executable, "-m", "tests.fuzz", *arguments, "--folder", folder]
                sys.exit(subprocess.run(command).returncode)
        further += [options.folder, str(FOLDER / options.target)]
    atheris.Setup([sys.argv[0], *limits, *further], TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
