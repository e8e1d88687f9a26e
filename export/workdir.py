"""Exports a run: its best checkpoint as a verified ONNX file, or its weights as a safetensors file."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import onnx
from jaxtyping import Array, UInt8

from export import explain, publish, quantize, sidecars
from export.card import write_card
from export.converter import InputSpec, to_onnx
from export.errors import VerificationError
from export.seal import seal
from export.verify import BATCHES, verify
from export.views import with_mirror_image
from jaxcnn.data import Dataset, Resize
from jaxcnn.disk import NO_ROOM, describe, write_atomically
from jaxcnn.errors import UserError
from jaxcnn.evaluation import batch_alone, measure
from jaxcnn.evaluation_record import to_record
from jaxcnn.metadata import Metadata
from jaxcnn.metrics import Evaluation
from jaxcnn.models import registry
from jaxcnn.run.checkpoint import TrainedModel, load_model
from jaxcnn.run.environment import environment
from jaxcnn.run.workdir import Workdir
from jaxcnn.run_metadata import describe_run
from jaxcnn.state import Variables
from jaxcnn.weights import mean_of, read_run, read_weights, write_weights

_INPUT = "image"
_TOLERANCES = {"heatmap": 1e-2}
"""A heatmap is divided by its largest value, which may be small beside the terms that it is the sum of."""
_ROUNDING = 1e-9
"""Above the rounding error of the difference of two accuracies, below the share of one picture in any data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """How to quantize a model to 8-bit integers.

    Attributes:
      dataset: training pictures that set the ranges of activations, validation pictures to measure on.
      tolerance: how far top-1 accuracy may fall, from 0 to 1.
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
    views: Literal[1, 2] = 1,
    quantization: Quantization | None = None,
) -> Path:
    """Writes the best checkpoint of a run as a verified ONNX file, with a description and a model card beside it.

    The input is `image`: uint8 RGB [batch, height, width, 3]. The outputs are `logits` and `probabilities`: float32
    [batch, classes]. The metadata say what the classes are and how to prepare a picture; see `jaxcnn.metadata`. For the
    files beside the model see `sidecars.make_sidecars`.

    Args:
      workdir: the run's folder.
      output: the file. None: `model.onnx` in the folder, or `model.int8.onnx` if quantized. It appears, or is replaced,
        when it is verified and everything that belongs to it is on the disk.
      pictures: real pictures to verify with, besides random ones. None: those in the example of an earlier export.
      features: add the output `features`, see `explain`.
      heatmap: add the output `heatmap`, see `explain`.
      views: 2 averages the probabilities of each picture and its mirror image, in twice the time; see `views`.
      quantization: quantize the model to 8-bit integers. None: float32.

    Returns:
      The path of the file.

    Raises:
      UserError: the folder is not a workdir or has no checkpoint, the file cannot be written, the pictures to quantize
        with have other classes, another size or another preparation, something else has the name of a file beside the
        model, or there are two views of a run that saw no mirrored pictures, or with `features` or `heatmap`.
      UnsupportedError: the model does something that cannot be exported.
      VerificationError: the file does not compute what the model does, or quantization costs too much accuracy.
    """
    run = Workdir(workdir)
    # Refuse what cannot succeed before the work, which may take minutes.
    target = find_target(output, default=run.onnx, quantized=quantization is not None)
    trained = load_model(workdir)
    if views == 2:
        _check_two_views(workdir, trained, features=features, heatmap=heatmap)
    # Real pictures verify more than random ones.
    if pictures is None:
        pictures = sidecars.read_pictures(run.onnx, trained.config.data.image_size)
    source = Source(
        trained=trained,
        metadata=describe_run(run, trained),
        evaluation=_read_evaluation(run, trained),
        pictures=pictures,
        # A file elsewhere is meant to be given away, the pictures may not be.
        shows_pictures=target.resolve().parent == run.path.resolve(),
    )
    return export_model(source, target, features=features, heatmap=heatmap, views=views, quantization=quantization)


def _check_two_views(workdir: Path, trained: TrainedModel, *, features: bool, heatmap: bool) -> None:
    """Raises UserError if a mirror image would make predictions worse, or outputs are of one view."""
    if not trained.config.mirrors:
        raise UserError(
            f"{workdir} was trained without mirrored pictures, so mirror images would mislead it; leave out --views 2"
        )
    if features or heatmap:
        raise UserError("--features and --heatmap describe one view of a picture; leave them out, or --views 2")


def find_target(output: Path | None, *, default: Path, quantized: bool) -> Path:
    """Returns the path of the file to write: `output` if it is given.

    Raises:
      UserError: it does not end with .onnx.
    """
    if output is not None and output.suffix != ".onnx":
        raise UserError(f"{output} does not end with .onnx; give such a name with -o")
    return output or (default.with_suffix(".int8.onnx") if quantized else default)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a model file is made from.

    Attributes:
      trained: the trained model.
      metadata: what the file says about it, without calibration and quantization.
      evaluation: the record of its evaluation on the validation pictures of its training; None if it was not evaluated.
      pictures: real pictures to verify with, besides random ones; uint8 [n, height, width, 3].
      shows_pictures: whether the example beside the file may have these pictures; otherwise it has noise.
    """

    trained: TrainedModel
    metadata: Metadata
    evaluation: dict[str, Any] | None = None
    pictures: np.ndarray | None = None
    shows_pictures: bool = False


def export_model(
    source: Source,
    target: Path,
    *,
    features: bool,
    heatmap: bool,
    views: Literal[1, 2] = 1,
    quantization: Quantization | None,
) -> Path:
    """Writes a trained model as a verified ONNX file, with the files beside it; see `export_workdir`.

    Raises:
      UserError: as `export_workdir`.
      UnsupportedError: as `export_workdir`.
      VerificationError: as `export_workdir`.
    """
    # Refuse what cannot succeed before the work.
    if quantization is not None:
        _check_same_pictures(quantization.dataset, source.trained)
    publish.check_replaceable(target)
    shown = source.pictures if source.shows_pictures else None
    try:
        with publish.temporary_folder(target) as folder:
            path = folder / target.name
            metadata, evaluation, checks = _write_model(
                source, path, features=features, heatmap=heatmap, views=views, quantization=quantization
            )
            card = write_card(metadata, sidecars.describe(path), evaluation=evaluation, checks=checks)
            example = _noise(4, source.trained.config.data.image_size) if shown is None else shown
            beside = sidecars.make_sidecars(path, metadata, card=card, pictures=example, real=shown is not None)
            publish.publish(path, beside, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _unwritable(target: Path, error: OSError) -> UserError:
    reason = describe(error, target.parent)
    if error.errno in NO_ROOM:
        return UserError(f"{target} cannot be written: {reason}; make room and run the same command again")
    return UserError(f"{target} cannot be written: {reason}; give another path with -o")


class _Written(NamedTuple):
    """A model that was written: its metadata, its evaluation if there is one, and a sentence for each check."""

    metadata: Metadata
    evaluation: dict[str, Any] | None
    checks: list[str]


class _Quantized(NamedTuple):
    """A quantized model.

    Attributes:
      file: the model.
      figures: the comparison with the float32 model, by name.
      evaluation: the record of its evaluation; None if it was measured on other pictures than its training's.
    """

    file: Path
    figures: dict[str, Any]
    evaluation: dict[str, Any] | None


def _write_model(
    source: Source,
    path: Path,
    *,
    features: bool,
    heatmap: bool,
    views: Literal[1, 2] = 1,
    quantization: Quantization | None,
) -> _Written:
    """Writes a verified model with its metadata."""
    # Write and verify the float32 model; quantize it if asked.
    trained, quantized = source.trained, None
    file, checks = _write_verified(trained, path, source.pictures, features=features, heatmap=heatmap, views=views)
    if quantization is not None:
        quantized = _quantize(file, source, quantization)
        file = quantized.file
        checks = [
            *(f"Before quantization: {check}" for check in checks),
            f"Quantized, it is valid ONNX, and top-1 falls by at most {quantization.tolerance}.",
        ]
    # Say in the file what it is.
    metrics, evaluation = _find_accuracy(source, quantized, views=views)
    metadata = dataclasses.replace(
        source.metadata,
        metrics=metrics,
        calibration=trained.calibration,
        quantization=None if quantized is None else quantized.figures,
        views=views if views > 1 else None,
    )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata.to_props())
    write_atomically(path, seal(model.SerializeToString()))
    return _Written(metadata, evaluation, checks)


def _find_accuracy(
    source: Source, quantized: _Quantized | None, *, views: Literal[1, 2]
) -> tuple[Mapping[str, float], dict[str, Any] | None]:
    """Returns metrics of what a file computes on the validation pictures of its training, and their whole record.

    Args:
      source: what the file was made from.
      quantized: the quantized model, if it was quantized.
      views: how many views of a picture it averages.

    Returns:
      The metrics by name, empty if they were not measured; the record, None without one.
    """
    # Others trained the weights; their validation pictures are not those measured here.
    if source.metadata.step is None:
        return source.metadata.metrics, None
    # A run records a few figures of two views.
    if views == 2 and quantized is None:
        return (source.evaluation or {}).get("with_flip", {}), None
    record = source.evaluation if quantized is None else quantized.evaluation
    if record is not None:
        return {key: record[key] for key in ("loss", "top1", "top5", "ece")}, record
    # The checkpoint has metrics of its float32 model, before calibration.
    return ({} if quantized is not None else source.metadata.metrics), None


def export_weights(workdir: Path, output: Path, *, average: Sequence[str] = ()) -> Path:
    """Writes the best checkpoint of a run as a safetensors file, for other runs to start from; see `jaxcnn.weights`.

    Args:
      workdir: the run's folder.
      output: the file.
      average: workdirs and safetensors files. The mean with their weights is written; its metrics are not known.

    Returns:
      The path of the file.

    Raises:
      UserError: the folder is not a workdir or has no checkpoint, the weights cannot be averaged, or the file cannot be
        written.
    """
    run, trained = Workdir(workdir), load_model(workdir)
    metadata, variables = describe_run(run, trained), trained.variables
    if average:
        # The name of a run may be that of weights, such as `shipped`.
        mean = mean_of([read_run(workdir, source=str(workdir)), *map(read_weights, average)])
        metadata = dataclasses.replace(metadata, metrics={}, trainings=mean.trainings)
        variables = mean.fill(variables, with_head=True)
    return save_weights(output, variables, metadata)


def save_weights(output: Path, variables: Variables, metadata: Metadata) -> Path:
    """Writes a safetensors file and returns its path; see `jaxcnn.weights.write_weights`.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        write_weights(output, variables, metadata)
    except OSError as error:
        raise _unwritable(output, error) from error
    return output


def _read_evaluation(run: Workdir, trained: TrainedModel) -> dict[str, Any] | None:
    """Returns the record of this checkpoint on the run's validation pictures; None if there is none, or only others."""
    found, pictures = _read_json(run.evaluation), run.read_pictures()
    expected = {
        "step": trained.step,
        "temperature": trained.temperature,
        "dataset": trained.dataset,
        "split": "validation",
        # Another data set may have the same name.
        **({} if pictures is None else {"count": pictures.validation}),
    }
    return found if isinstance(found, dict) and expected.items() <= found.items() else None


def _logits(trained: TrainedModel, variables: Any) -> explain.Classifier:
    """Returns the calibrated model in float32: its parameters are float32, and few runtimes support bfloat16."""
    config = dataclasses.replace(trained.config.model, precision="float32")
    model = registry.build(config, classes=len(trained.names))

    def logits(image: Array) -> Array:
        result: Array = model.apply(variables, image, train=False)
        # The exporter folds the division into the weights of the last layer.
        return result / trained.temperature

    return logits


def _outputs(logits: explain.Classifier, *, features: bool, heatmap: bool) -> Callable[[Array], dict[str, Array]]:
    """Returns a function from pictures to the outputs of the file by name."""

    def classify(image: Array) -> dict[str, Array]:
        if features or heatmap:
            found = explain.explain(logits, image, features=features, heatmap=heatmap)
        else:
            found = {"logits": logits(image)}
        return found | {"probabilities": jax.nn.softmax(found["logits"])}

    return classify


def _write_verified(
    trained: TrainedModel,
    path: Path,
    pictures: np.ndarray | None,
    *,
    features: bool,
    heatmap: bool,
    views: Literal[1, 2],
) -> tuple[Path, list[str]]:
    """Writes the model and verifies the file, and another with other batch statistics.

    Statistics that training hardly moved from 0 and 1 would hide a mistake in how they are folded.

    Returns:
      The file, and a sentence for each check.
    """
    side = trained.config.data.image_size
    inputs: dict[str, InputSpec] = {_INPUT: ("uint8", ("batch", side, side, 3))}
    samples = None if pictures is None else {_INPUT: pictures}
    largest = 0.0
    for variables, file in ((_perturbed(trained.variables), path.with_suffix(".perturbed")), (trained.variables, path)):
        logits = _logits(trained, variables)
        classify = _outputs(logits if views == 1 else with_mirror_image(logits), features=features, heatmap=heatmap)
        file.write_bytes(to_onnx(classify, inputs).SerializeToString())
        largest = verify(file, classify, inputs, samples=samples, tolerances=_TOLERANCES)
    # What the card says about it.
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
    """Returns the variables with batch statistics far from the recorded ones."""
    random = np.random.default_rng(0)

    def move(path: Any, leaf: Array) -> Any:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if path[0].key != "batch_stats":
            return leaf
        # Variances stay positive.
        noise = random.uniform(0.5, 2.0, leaf.shape) if name == "var" else random.normal(0, 0.3, leaf.shape)
        return np.asarray(leaf * noise if name == "var" else leaf + noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(move, variables)


def _check_same_pictures(dataset: Dataset, trained: TrainedModel) -> None:
    """Raises UserError if pictures have other classes or another size than the model, or became squares otherwise."""
    side = trained.config.data.image_size
    if dataset.names != trained.names or dataset.train.shown.shape[1:] != (side, side, 3):
        raise UserError(
            f"the pictures of {dataset.name} are not the model's: they have another size or other classes than its "
            f"{len(trained.names)} classes at {side}x{side}; give the data it was trained on with --data.source"
        )
    expected = Resize.of(trained.config.data)
    if dataset.resize != expected:
        raise UserError(
            f"the pictures of {dataset.name} were prepared with {dataset.resize}, but the model takes {expected}; load "
            "them with the data.fit, data.crop and data.filter of the run"
        )


def _quantize(file: Path, source: Source, quantization: Quantization) -> _Quantized:
    """Writes a quantized model beside a float32 one, and measures both.

    Raises:
      VerificationError: the accuracy falls by more than the tolerance.
    """
    trained, dataset = source.trained, quantization.dataset
    files = [file, file.with_suffix(".int8")]
    quantize.quantize(file, files[1], dataset.train.shown)
    quantize.check_valid(files[1])
    evaluations = [_evaluate(path, dataset, trained) for path in files]
    speeds = quantize.compare_speed(files, trained.config.data.image_size)
    # Compare both in accuracy, size and speed.
    is_own = _has_own_split(source.metadata, dataset)
    figures = {
        **({} if is_own else {"dataset": dataset.name}),
        "tolerance": quantization.tolerance,
        "calibration_pictures": min(len(dataset.train), quantize.CALIBRATION_PICTURES),
        "pictures": len(dataset.validation),
        "processor": environment()["processor"],
    }
    for kind, path, evaluation, speed in zip(("float32", "int8"), files, evaluations, speeds, strict=True):
        figures |= {f"{name}_{kind}": value for name, value in evaluation.scalars().items()}
        figures |= {f"bytes_{kind}": path.stat().st_size}
        figures |= {f"ms_{kind}": speed.latency, f"rate_{kind}": speed.throughput}
    before, after = (evaluation.top1 for evaluation in evaluations)
    if before - after > quantization.tolerance + _ROUNDING:
        raise VerificationError(
            f"in int8 top-1 accuracy falls from {before:.4f} to {after:.4f}, by more than the "
            f"{quantization.tolerance:g} that --tolerance allows (one picture takes {speeds[1].latency:.3f} ms instead "
            f"of {speeds[0].latency:.3f} ms); no file was written"
        )
    return _Quantized(files[1], figures, to_record(evaluations[1], names=trained.names) if is_own else None)


def _has_own_split(metadata: Metadata, dataset: Dataset) -> bool:
    """Returns whether pictures are those that the model was trained with, and the same are held out."""
    # Which pictures others held out is not known; runs of earlier versions have no fingerprint.
    if metadata.step is None:
        return False
    if metadata.pictures is None:
        return dataset.name == metadata.dataset
    return metadata.pictures.has_same_split(dataset.fingerprint())


def _evaluate(path: Path, dataset: Dataset, trained: TrainedModel) -> Evaluation:
    run = sidecars.open_model(path)
    return measure(
        lambda images: run(images)["logits"],
        dataset.validation,
        classes=len(trained.names),
        batch_size=batch_alone(trained.config),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
