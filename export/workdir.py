"""A training run's folder as a file to take away: the only part of `export` that knows jaxcnn."""

import dataclasses
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jaxtyping import Array, UInt8

import jaxcnn
from export import explain, quantize, sidecars
from export.card import write_card
from export.converter import InputSpec, to_onnx
from export.errors import VerificationError
from export.verify import BATCHES, verify
from jaxcnn import models
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Dataset
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.evaluation import measure
from jaxcnn.evaluation_record import to_record
from jaxcnn.metrics import Evaluation
from jaxcnn.paths import readable
from jaxcnn.run import lineage
from jaxcnn.run.checkpoint import TrainedModel, load_model
from jaxcnn.run.workdir import Workdir, environment
from jaxcnn.weights import mean_of, read_weights, write_weights

_INPUT = "image"
_TOLERANCES = {"heatmap": 1e-2}
"""A heatmap is divided by its largest value, which may be small beside what it is the sum of."""
_ABANDONED = 24 * 60 * 60
"""Seconds without a new file after which an export was killed: the longest takes some hours."""
_ROUNDING = 1e-9
"""More than the difference of two shares is off by in binary, and less than one picture of any data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Asks for eight-bit integers.

    Attributes:
      dataset: training pictures to calibrate with, validation pictures to measure with.
      tolerance: how much top-1 accuracy may fall, from 0 to 1.
    """

    dataset: Dataset
    tolerance: float = 0.01


def export_workdir(
    workdir: Path,
    output: Path | None = None,
    *,
    pictures: UInt8[np.ndarray, "n height width 3"] | None = None,
    features: bool = False,
    heatmap: bool = False,
    quantization: Quantization | None = None,
) -> Path:
    """Writes the best checkpoint of a run as a verified ONNX file, with a description and a model card beside it.

    Input `image`: uint8 RGB [batch, height, width, 3]. Outputs `logits` and `probabilities`: float32
    [batch, classes]. Class names and how to prepare pictures are in the metadata, each value in JSON. For what goes
    with it see `sidecars.make_sidecars`.

    Args:
      workdir: the run's folder.
      output: the file; by default `model.onnx` (`model.int8.onnx` if quantized) in the folder. It appears, or is
        replaced, only once verified and once all that goes with it is on the disk too.
      pictures: real ones to verify with, besides random ones; by default those of the example of an earlier export.
      features: adds the output `features`, see `explain`.
      heatmap: adds the output `heatmap`, see `explain`.
      quantization: writes the file in eight-bit integers.

    Returns:
      The path of the file.

    Raises:
      UserError: not a run's folder, no checkpoint in it, the file cannot be written, or the pictures to quantize with
        are of other classes or another size, or something else has the name of what comes beside the file.
      UnsupportedError: the model does something that cannot be exported.
      VerificationError: the file does not compute what the model does, or its accuracy falls too much in eight bits.
    """
    run = Workdir(workdir)
    if output is not None and output.suffix != ".onnx":
        raise UserError(f"{output} does not end with .onnx; give such a name with -o")
    target = output or (run.onnx if quantization is None else run.onnx.with_suffix(".int8.onnx"))
    trained = load_model(workdir)
    if quantization is not None:
        _check_same_pictures(quantization.dataset, trained)
    _check_free(target)
    if pictures is None:
        pictures = sidecars.read_pictures(run.onnx, trained.config.data.image_size)
    # A file that is taken elsewhere is given to others, who may not be meant to have the pictures.
    shown = pictures if target.resolve().parent == run.path.resolve() else None
    try:
        _remove_abandoned(target)
        with tempfile.TemporaryDirectory(prefix=_prefix(target), dir=target.parent) as folder:
            path = Path(folder) / target.name
            facts, evaluation, checks = _write_model(
                run, trained, path, pictures, features=features, heatmap=heatmap, quantization=quantization
            )
            card = write_card(facts, sidecars.describe(path), evaluation=evaluation, checks=checks)
            example = _noise(4, trained.config.data.image_size) if shown is None else shown
            beside = sidecars.make_sidecars(path, facts, card=card, pictures=example, real=shown is not None)
            _publish(path, beside, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}; give another path with -o") from error
    return target


def _check_free(target: Path) -> None:
    """Raises a `UserError` if something else has the name of the file, or of what comes beside it."""
    if target.is_dir():
        raise UserError(f"{target} cannot be written: Is a directory; give another path with -o")
    if foreign := sidecars.foreign_path(target):
        raise UserError(
            f"{foreign} would be written with {target}, but is something else already; move it away, or give another "
            "name with -o"
        )


def _prefix(target: Path) -> str:
    """What the folders begin with in which exports of this file work: by it they are ours to remove."""
    return f".export-{target.name}-"


def _remove_abandoned(target: Path) -> None:
    """Removes the folders of exports that were killed, but none that another may be working in at this time."""
    for folder in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        with suppress(OSError):  # another export may be removing it too
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)


def _write_model(
    run: Workdir,
    trained: TrainedModel,
    path: Path,
    pictures: np.ndarray | None,
    *,
    features: bool,
    heatmap: bool,
    quantization: Quantization | None,
) -> tuple[dict[str, Any], dict[str, Any] | None, list[str]]:
    """Writes the verified model; returns its metadata, its evaluation, and what was checked, a sentence each."""
    facts, evaluation = metadata(run, trained), _evaluation(run, trained)
    file, checks = _write_verified(trained, path, pictures, features=features, heatmap=heatmap)
    if quantization is not None:
        file, facts["quantization"], evaluation = _quantize(file, trained, quantization)
        checks = [f"Before quantization: {check}" for check in checks]
        checks += [f"Quantized, it is valid ONNX, and top-1 falls by at most {quantization.tolerance}."]
    facts |= _measured(trained, evaluation)
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    write_atomically(path, model.SerializeToString())
    return facts, evaluation, checks


def _publish(path: Path, beside: dict[str, bytes], target: Path) -> None:
    """Moves a model to its place, and what goes beside it, by its path there.

    All is on the disk before anything is replaced, so a full one changes nothing. The model comes last: if something
    cannot be replaced, the older model is still there.
    """
    for name, content in beside.items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        write_atomically(path.parent / name, content)
    for name in (*beside, target.name):
        (target.parent / name).parent.mkdir(exist_ok=True)
        os.replace(path.parent / name, target.parent / name)


def export_weights(workdir: Path, output: Path, *, average: Sequence[str] = ()) -> Path:
    """Writes the best checkpoint of a run as a safetensors file, for other runs to start from; see `jaxcnn.weights`.

    The metadata is that of the ONNX file, and `step`, the steps taken.

    Args:
      workdir: the run's folder.
      output: the file.
      average: workdirs and safetensors files; the mean with their weights is written, whose metrics are not known.

    Raises:
      UserError: not a run's folder, no checkpoint in it, weights that do not go together, or the file cannot be
        written.
    """
    run, trained = Workdir(workdir), load_model(workdir)
    facts, variables = metadata(run, trained) | {"step": trained.step}, trained.variables
    if average:
        mean = mean_of([read_weights(str(workdir)), *map(read_weights, average)])
        facts |= {"metrics": {}, "trainings": [dataclasses.asdict(each) for each in mean.trainings]}
        variables = mean.fill(variables, with_head=True)
    try:
        write_weights(output, variables, facts)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}; give another path with -o") from error
    return output


def metadata(run: Workdir, trained: TrainedModel) -> dict[str, Any]:
    """What the file says about itself: to `jaxcnn.evaluate`, the server, and whoever loads it elsewhere."""
    side, classes, pictures = trained.config.data.image_size, len(trained.names), run.read_pictures()
    return {
        "names": list(trained.names),
        "wnids": list(trained.wnids),
        "image_size": [side, side],
        "resize": {"mode": "stretch", "filter": "bicubic"},
        "dataset": trained.dataset,
        "metrics": trained.metrics,
        "config": dataclasses.asdict(_portable(trained.config)),
        **({} if pictures is None else {"pictures": dataclasses.asdict(pictures)}),
        "license": trained.license,
        "trainings": [dataclasses.asdict(each) for each in lineage.trainings(run, trained)],
        "author": "jaxcnn",
        "version": jaxcnn.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "description": f"{trained.config.model.name} classifier of {classes} classes, trained on {trained.dataset}",
    }


def _measured(trained: TrainedModel, evaluation: dict[str, Any] | None) -> dict[str, Any]:
    """What is in the file's metadata of one checkpoint: its figures are calibrated as soon as the file is."""
    facts: dict[str, Any] = {"step": trained.step}
    if evaluation is not None:
        facts["metrics"] = {key: evaluation[key] for key in ("loss", "top1", "top5", "ece")}
    if trained.calibration is not None:
        facts["calibration"] = dataclasses.asdict(trained.calibration)
    return facts


def _evaluation(run: Workdir, trained: TrainedModel) -> dict[str, Any] | None:
    """The record of this checkpoint on the run's validation pictures; None if there is none, or only another."""
    found, pictures = _read_json(run.evaluation), run.read_pictures()
    expected = {
        "step": trained.step,
        "temperature": trained.temperature,
        "dataset": trained.dataset,
        "split": "validation",
        # Other data may have the same name.
        **({} if pictures is None else {"count": pictures.validation}),
    }
    return found if isinstance(found, dict) and expected.items() <= found.items() else None


def _portable(config: Config) -> Config:
    """The settings without the places where this machine keeps archives, caches and other runs."""
    here = DataConfig()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, source=readable(config.data.source), archive=here.archive, cache_dir=here.cache_dir
        ),
        init_from=config.init_from and (readable(Path(config.init_from).name) or None),
    )


def _logits(trained: TrainedModel, variables: Any) -> explain.Classifier:
    """The calibrated model in float32, whatever it was trained in: parameters are, and few runtimes know bfloat16."""
    config = dataclasses.replace(trained.config.model, precision="float32")
    model = models.build(config, classes=len(trained.names))

    def logits(image: Array) -> Array:
        result: Array = model.apply(variables, image, train=False)
        return result / trained.temperature  # becomes a part of the last layer's weights

    return logits


def _outputs(logits: explain.Classifier, *, features: bool, heatmap: bool) -> Callable[[Array], dict[str, Array]]:
    def classify(image: Array) -> dict[str, Array]:
        if features or heatmap:
            found = explain.explain(logits, image, features=features, heatmap=heatmap)
        else:
            found = {"logits": logits(image)}
        return found | {"probabilities": jax.nn.softmax(found["logits"])}

    return classify


def _write_verified(
    trained: TrainedModel, path: Path, pictures: np.ndarray | None, *, features: bool, heatmap: bool
) -> tuple[Path, list[str]]:
    """Writes the model and checks the file, then checks one with other batch statistics; returns what was checked.

    Statistics that training hardly moved from zero and one would hide a mistake in how they are folded.
    """
    side = trained.config.data.image_size
    inputs: dict[str, InputSpec] = {_INPUT: ("uint8", ("batch", side, side, 3))}
    samples = None if pictures is None else {_INPUT: pictures}
    largest = 0.0
    for variables, file in ((_perturbed(trained.variables), path.with_suffix(".perturbed")), (trained.variables, path)):
        classify = _outputs(_logits(trained, variables), features=features, heatmap=heatmap)
        file.write_bytes(to_onnx(classify, inputs).SerializeToString())
        largest = verify(file, classify, inputs, samples=samples, tolerances=_TOLERANCES)
    kinds = "random pictures"
    if pictures is not None:
        kinds += f" and {min(len(pictures), max(BATCHES))} real ones"
    return path, [
        "The file, read back from disk, is valid ONNX with all shapes inferred.",
        f"onnxruntime computes what JAX does, with and without graph optimizations, in batches of 1 and 7, on {kinds}: "
        f"the largest difference is {largest:.1e} of the largest value.",
        "The same holds with other batch statistics.",
    ]


def _perturbed(variables: Any) -> Any:
    """The variables with batch statistics moved far from where they are."""
    random = np.random.default_rng(0)

    def move(path: Any, leaf: Array) -> Any:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if path[0].key != "batch_stats":
            return leaf
        noise = random.uniform(0.5, 2.0, leaf.shape) if name == "var" else random.normal(0, 0.3, leaf.shape)
        return np.asarray(leaf * noise if name == "var" else leaf + noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(move, variables)


def _check_same_pictures(dataset: Dataset, trained: TrainedModel) -> None:
    side = trained.config.data.image_size
    if dataset.names != trained.names or dataset.train.images.shape[1:] != (side, side, 3):
        raise UserError(
            f"the pictures of {dataset.name} are not the model's: they have another size or other classes than its "
            f"{len(trained.names)} classes at {side}x{side}; give the data it was trained on with --data.source"
        )


def _quantize(
    file: Path, trained: TrainedModel, quantization: Quantization
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Writes a quantized file beside one, measures both, and returns the file, the comparison and its evaluation.

    Raises:
      VerificationError: the accuracy falls by more than is tolerated.
    """
    dataset, side = quantization.dataset, trained.config.data.image_size
    small = file.with_suffix(".int8")
    quantize.quantize(file, small, dataset.train.images)
    quantize.check_valid(small)
    measured = [_evaluate(each, dataset, trained) for each in (file, small)]
    speed = quantize.compare_speed([file, small], side)
    figures = {
        "tolerance": quantization.tolerance,
        "calibration_pictures": min(len(dataset.train), quantize.CALIBRATION_PICTURES),
        "pictures": len(dataset.validation),
        "processor": environment()["processor"],
    }
    for kind, path, evaluation, times in zip(("float32", "int8"), (file, small), measured, speed, strict=True):
        figures |= {f"{name}_{kind}": value for name, value in evaluation.scalars().items()}
        figures |= {f"bytes_{kind}": path.stat().st_size}
        figures |= {f"ms_{kind}": times.latency, f"rate_{kind}": times.throughput}
    top1 = [each.top1 for each in measured]
    if top1[0] - top1[1] > quantization.tolerance + _ROUNDING:
        raise VerificationError(
            f"in int8 top-1 accuracy falls from {top1[0]:.4f} to {top1[1]:.4f}, by more than the "
            f"{quantization.tolerance:g} that --tolerance allows (one picture takes {speed[1].latency:.3f} ms instead "
            f"of {speed[0].latency:.3f} ms); no file was written"
        )
    return small, figures, to_record(measured[1], names=trained.names)


def _evaluate(path: Path, dataset: Dataset, trained: TrainedModel) -> Evaluation:
    run = sidecars.open_model(path)
    return measure(
        lambda images: run(images)["logits"],
        dataset.validation,
        classes=len(trained.names),
        batch_size=trained.config.batch_size,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
