"""Clients of the experiment logs that people keep beside a workdir: MLflow, and Weights & Biases.

Their packages need not be installed, and are imported when a run is sent to them.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Outcome = Literal["finished", "stopped", "failed"]
"""How a session ended: with a model, by a signal, or by an error."""

EXPERIMENT = "jaxcnn"
"""Experiment of MLflow, unless MLFLOW_EXPERIMENT_NAME has another."""
ID_TAG = "jaxcnn.id"
"""Tag by which a run is found again in MLflow."""
MOST_PARAMETERS = 100
"""Most parameters that MLflow takes in one request."""
LONGEST_PARAMETER = 500
"""Most characters of a parameter that all stores of MLflow take."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a tracker shows of a run from its start.

    Attributes:
      id: hexadecimal digits that stay the same when the run is resumed.
      folder: its workdir, which gives it its name.
      note: the user's note; may be empty.
      settings: their values by the names of the options.
    """

    id: str
    folder: Path
    note: str
    settings: Mapping[str, object]


@runtime_checkable
class Tracker(Protocol):
    """A client of an experiment log. Every call may raise any exception, and may take as long as its server does."""

    def start(self, run: LoggedRun) -> None:
        """Creates a run, or continues the one that has this id."""

    def write(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Records metrics at a step; `time` is in seconds since 1970."""

    def write_files(self, *, model: Path, report: Path) -> None:
        """Keeps the exported model and the report with the run."""

    def end(self, outcome: Outcome) -> None:
        """Records that the session has ended."""


class MLflow:
    """A run of MLflow, on a server or in a local store such as `sqlite:///mlflow.db`."""

    def __init__(self, uri: str):
        self._uri = uri
        self._client: Any = None
        self._run = ""

    def start(self, run: LoggedRun) -> None:
        """Creates a run in the experiment `EXPERIMENT`, or continues the one whose tag has this id."""
        # By itself, the client would try for minutes to reach a server.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow import MlflowClient

        self._client = MlflowClient(self._uri)
        experiment = self._find_experiment()
        found = self._client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._run, recorded = found[0].info.run_id, found[0].data.params
            self._client.update_run(self._run, status="RUNNING")
        else:
            created = self._client.create_run(experiment, run_name=run.folder.name, tags={ID_TAG: run.id})
            self._run, recorded = created.info.run_id, {}
        if run.note:
            self._client.set_tag(self._run, "mlflow.note.content", run.note)
        self._write_settings(run.settings, recorded)

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            with contextlib.suppress(MlflowException):  # Another run may create it at this moment.
                return str(self._client.create_experiment(name))
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _write_settings(self, settings: Mapping[str, object], recorded: Mapping[str, str]) -> None:
        """Records settings as parameters, which can be written once, and as a tag what a resumed run has changed."""
        from mlflow.entities import Param

        texts = {name: str(value)[:LONGEST_PARAMETER] for name, value in settings.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in recorded]
        for some in itertools.batched(new, MOST_PARAMETERS):
            self._client.log_batch(self._run, params=list(some))
        for name, text in texts.items():
            if recorded.get(name, text) != text:
                self._client.set_tag(self._run, name, text)

    def write(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Records metrics at a step."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, round(1000 * time), step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def write_files(self, *, model: Path, report: Path) -> None:
        """Keeps the report, and the model in the form that `mlflow.pyfunc.load_model` and `mlflow.onnx` load."""
        import mlflow.onnx
        import onnx

        self._client.log_artifact(self._run, str(report))
        loaded = onnx.load(model)
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / "model"
            mlflow.onnx.save_model(
                loaded,
                str(packed),
                signature=_signature(loaded),
                pip_requirements=mlflow.onnx.get_default_pip_requirements(),
                save_as_external_data=False,
            )
            # To the byte the file of the workdir, which ends in its checksum.
            shutil.copyfile(model, packed / "model.onnx")
            self._client.log_artifacts(self._run, str(packed), "model")

    def end(self, outcome: Outcome) -> None:
        """Sets the status of the run."""
        status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[outcome]
        self._client.set_terminated(self._run, status)


def _signature(model: Any) -> Any:
    """Returns names, types and shapes of inputs and outputs of an ONNX model, as MLflow describes them."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    def schema(values: Any) -> Any:
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return Schema(
            [
                # The batch has a name in place of a length.
                TensorSpec(
                    tensor_dtype_to_np_dtype(kind.elem_type),
                    tuple(size.dim_value or -1 for size in kind.shape.dim),
                    name,
                )
                for name, kind in tensors
            ]
        )

    return ModelSignature(inputs=schema(model.graph.input), outputs=schema(model.graph.output))


class WeightsAndBiases:
    """A run of Weights & Biases; the variables of its client apply, such as WANDB_MODE=offline."""

    def __init__(self, project: str):
        self._project = project
        self._run: Any = None
        self._id = ""

    def start(self, run: LoggedRun) -> None:
        """Creates a run with this id, or continues it."""
        import wandb

        self._id = run.id
        self._run = wandb.init(
            project=self._project,
            id=run.id,
            name=run.folder.name,
            notes=run.note or None,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            # Nobody can answer a question that a thread asks.
            settings=wandb.Settings(silent=True, console="off", login_timeout=1),
        )
        self._run.config.update(dict(run.settings), allow_val_change=True)
        # Steps that are lost and taken again have smaller numbers than the last, which the client's own steps forbid.
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """Records metrics at a step."""
        self._run.log({**values, "step": step})

    def write_files(self, *, model: Path, report: Path) -> None:
        """Keeps the files as an artifact."""
        import wandb

        artifact = wandb.Artifact(f"model-{self._id}", type="model")
        for path in (model, report):
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, outcome: Outcome) -> None:
        """Ends the run, with status 0 if it is complete."""
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
