"""The targets that need JAX."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import export.workdir
from export.workdir import export_model, export_workdir
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.onnx_file import open_model
from jaxcnn.run.checkpoint import open_checkpoints
from server import model
from server.errors import StartError
from tests.run.test_crashes import STEPS, state_of
from tests.runs import PICTURES, make_run


def read_files(folder: Path) -> dict[str, object]:
    """Returns the content of all files by path, without locks."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Checkpoints:
    """A training that goes on from its last checkpoint; with `flips`, one that is only read."""

    def __init__(self, *, flips: bool = False) -> None:
        self.flips = flips

    def prepare(self, inputs: Path) -> None:
        self._states = {step: state_of(step) for step in STEPS}

    def begin(self, folder: Path) -> None:
        self._train(folder, until=4 if self.flips else 2)

    def work(self, folder: Path) -> object:
        self._train(folder, until=4)
        return None

    def check(self, folder: Path) -> None:
        assert self._restore(folder) >= (3 if self.flips else 2), "a finished step is lost"

    def read(self, folder: Path) -> object:
        return self._restore(folder)

    def _train(self, folder: Path, *, until: int) -> None:
        with open_checkpoints(folder / "checkpoints") as checkpoints:
            last = checkpoints.last_step or 0
            if last:
                self._check(checkpoints.restore(self._states[1]))
                last = checkpoints.last_step or 0
            for step in range(last + 1, until + 1):
                checkpoints.save(self._states[step], metrics={"top1": STEPS[step]})

    def _restore(self, folder: Path) -> int:
        with open_checkpoints(folder / "checkpoints") as checkpoints:
            return self._check(checkpoints.restore(self._states[1]))

    def _check(self, state: Any) -> int:
        step = int(state.step)
        jax.tree.map(np.testing.assert_array_equal, state, self._states[step])
        return step


class Export:
    """An export in place of an earlier one. The model is made once: what is done with it is what may fail."""

    flips = False

    def prepare(self, inputs: Path) -> None:
        run = make_run(inputs / "run")
        self._write_model, made = export.workdir._write_model, []
        export.workdir.export_model = lambda source, *_, **__: made.append(source)
        export_workdir(run, inputs / "m.onnx", pictures=PICTURES)
        export.workdir.export_model = export_model
        (self._source,) = made
        self._models = [self._make(inputs, features=features) for features in (False, True)]

    def _make(self, inputs: Path, *, features: bool) -> tuple[bytes, Any]:
        path = inputs / "m.onnx"
        written = self._write_model(self._source, path, features=features, heatmap=False, quantization=None)
        return path.read_bytes(), written

    def begin(self, folder: Path) -> None:
        self._export(folder, 0)

    def work(self, folder: Path) -> object:
        self._export(folder, 1)
        return None

    def _export(self, folder: Path, number: int) -> None:
        content, written = self._models[number]

        def write_model(source: object, path: Path, **_: object) -> object:
            write_atomically(path, content)
            return written

        export.workdir._write_model = write_model
        export_model(self._source, folder / "m.onnx", features=bool(number), heatmap=False, quantization=None)

    def check(self, folder: Path) -> None:
        assert (folder / "m.onnx").read_bytes() in [content for content, _ in self._models], "it is not whole"
        served = model.load(folder / "m.onnx", max_batch=1, threads=1)
        assert set(open_model(folder / "m.onnx").outputs) == set(served.outputs)

    def read(self, folder: Path) -> object:
        # Folders of exports that were cut short are removed after a day.
        return {name: content for name, content in read_files(folder).items() if not name.startswith(".export-")}


class Swap:
    """A server that loads a file in place of another; it keeps the old one if it refuses the new one.

    onnxruntime reads the file by itself, after the server has compared it with its checksum. What that read gets wrong
    is noticed if the outputs for the example differ by more than a hundredth.
    """

    def __init__(self, *, flips: bool = False) -> None:
        self.flips = flips

    def prepare(self, inputs: Path) -> None:
        self._run, self._logits = make_run(inputs / "run"), None

    def begin(self, folder: Path) -> None:
        export_workdir(self._run, folder / "m.onnx", pictures=PICTURES)

    def work(self, folder: Path) -> object:
        try:
            served = model.load(folder / "m.onnx", max_batch=1, threads=1)
        except StartError as error:
            raise UserError(str(error)) from error
        logits = served.run(PICTURES, ["logits"])["logits"]
        if self._logits is None:
            self._logits = logits
        return bool(np.abs(logits - self._logits).max() <= 0.01 * np.abs(self._logits).max())

    def check(self, folder: Path) -> None:
        pass

    def read(self, folder: Path) -> object:
        return self.work(folder)
