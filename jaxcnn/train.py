"""Training from start to end: `python -m jaxcnn.train [PRESET] [--field.name VALUE ...] [--workdir DIR]`."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import export
from jaxcnn import cli, data
from jaxcnn.calibration import Calibration, calibrate, write_calibration
from jaxcnn.classifier import open_classifier
from jaxcnn.config import SHAPE, Config, ModelConfig, ModelName
from jaxcnn.distributed import describe_devices
from jaxcnn.errors import UserError
from jaxcnn.evaluate import describe, evaluate, predict, with_mirror_image, write_evaluation
from jaxcnn.leakage import check_no_leakage
from jaxcnn.loop import Run, fit, initial_state, prepare
from jaxcnn.metrics import Evaluation
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.paths import check_outside_pictures, named_path
from jaxcnn.presets import PRESETS
from jaxcnn.run import report
from jaxcnn.run.checkpoint import load_model, open_checkpoints
from jaxcnn.run.describe import counted
from jaxcnn.run.lineage import record_earlier
from jaxcnn.run.metrics_log import open_log
from jaxcnn.run.progress import console
from jaxcnn.run.sessions import record_session
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.signals import stop_on_signal
from jaxcnn.step import eval_step
from jaxcnn.weights import Weights, read_model, read_weights

PROG = "python -m jaxcnn.train"


@dataclass(frozen=True)
class Arguments:
    """The command line of a training run."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path
    """Folder of the run. If it holds one already, that is resumed."""


def main(arguments: Sequence[str]) -> None:
    """Trains as the command line says, and prints what came out."""
    parsed = parse(arguments)
    keep_freed_memory()
    evaluation = train(parsed.config, parsed.workdir)
    if evaluation is not None:
        console.print(
            f"best checkpoint, calibrated: validation top-1 {evaluation.top1:.4f}, loss {evaluation.loss:.4f} "
            f"on {counted(evaluation.count, 'picture')}"
        )
        for name in ("report.html", "model.onnx"):
            console.print(f"  {parsed.workdir / name}", soft_wrap=True)


def parse(arguments: Sequence[str]) -> Arguments:
    """Reads a command line.

    Raises:
      UserError: an unknown preset, option or value; the message lists what exists. Or the weights to start from
        are not there, or of another network than an option says.
    """
    preset = "digits"
    if arguments and not arguments[0].startswith("-"):
        preset, *arguments = arguments
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    default = Arguments(PRESETS[preset](), Path("runs") / preset)
    config = default.config
    init_from = cli.peek(arguments, "init_from", config.init_from)
    workdir = cli.peek(arguments, "workdir", str(default.workdir))
    weights_model = None if {"-h", "--help"} & set(arguments) else _find_weights_model(init_from, workdir)
    if weights_model is not None:
        config = dataclasses.replace(config, model=config.model.with_shape_of(weights_model))
    summaries = "\n".join(f"  {name}: {(make.__doc__ or '').splitlines()[0]}" for name, make in PRESETS.items())
    parsed = cli.parse(
        dataclasses.replace(default, config=_with_model(config, cli.peek(arguments, "model.name", None))),
        arguments,
        prog=f"{PROG} [PRESET]",
        description=f"Trains an image classifier. Options change the settings of a preset.\n\n{summaries}",
    )
    if weights_model is not None:
        _check_shape(parsed.config, weights_model)
    given = workdir and str(parsed.workdir)  # an empty text has become the working directory
    return dataclasses.replace(parsed, workdir=named_path(given, option="workdir"))


def _find_weights_model(init_from: str | None, workdir: str) -> ModelConfig | None:
    """The network of the weights to start from; a run that has begun with them knows it by itself."""
    if init_from is None or init_from == "None":
        return None
    run = Workdir(named_path(workdir, option="workdir"))
    if (run.path / "config.json").exists():
        recorded = run.read_config()
        if recorded.init_from == init_from:
            return recorded.model
    return read_model(init_from)


def _check_shape(config: Config, weights_model: ModelConfig) -> None:
    """Raises a `UserError` that names the first option that asks for another network than the weights are of."""
    for name in SHAPE:
        asked, there = getattr(config.model, name), getattr(weights_model, name)
        if asked != there:
            raise UserError(
                f"model.{name} is {asked!r}, but {there!r} in the weights of {config.init_from}; leave out "
                f"--model.{name}, or start from no weights by --init_from None"
            )


def _with_model(config: Config, name: str | None) -> Config:
    """Another network than the settings' starts from its own shape, not from theirs."""
    if name == config.model.name or name not in typing.get_args(ModelName):
        return config
    model = ModelConfig(name=typing.cast(ModelName, name), precision=config.model.precision)
    return dataclasses.replace(config, model=model)


def train(config: Config, workdir: Path) -> Evaluation | None:
    """Trains, or goes on with, the run in `workdir` and exports its best checkpoint.

    Returns:
      The evaluation of the best checkpoint; None if a signal stopped the run before its end.

    Raises:
      UserError: what the user gave cannot be trained on, or training diverged.
    """
    if not data.is_named(config.data.source):
        check_outside_pictures(workdir, option="workdir", source=config.data.source)
    paths = Workdir(workdir)
    with paths.locked():
        paths.check_settings(config)
        run = prepare(config, data.load(config.data))
        dataset, pictures = run.dataset, run.dataset.fingerprint()
        classes = Classes(dataset.names, dataset.wnids, dataset.name, dataset.license)
        paths.check_data(classes, pictures)
        with open_checkpoints(paths.checkpoints) as checkpoints, open_log(workdir) as log, stop_on_signal() as stop:
            if checkpoints.last_step is None:
                weights = None if config.init_from is None else read_weights(config.init_from)
                state = initial_state(run, weights)
            else:
                weights, state = None, checkpoints.restore(initial_state(run))
            if weights is not None:
                check_no_leakage(dataset, config.data, trained_on=weights.trained_on, began=weights.pictures)
            check_epochs(run, workdir, step=int(state.step))
            if int(state.step) < run.total_steps:
                record_session(paths, config, classes, step=int(state.step))
            else:
                paths.check_finished_settings(config)
            if weights is not None:
                record_earlier(weights.trainings, paths.earlier_trainings)
            paths.record_pictures(pictures)
            _say_start(run, workdir, step=int(state.step), weights=weights)
            finished = fit(run, state, checkpoints=checkpoints, log=log, stop=stop)
        return conclude(run, workdir) if finished else None


def check_epochs(run: Run, workdir: Path, *, step: int) -> None:
    """Raises a `UserError` if a run has taken more steps than the settings ask for."""
    if step > run.total_steps:
        taken = step / run.steps_per_epoch
        raise UserError(
            f"epochs is {run.config.epochs}, but the run in {workdir} has taken {taken:.4g} already; give at least "
            f"{math.ceil(taken)}, or another --workdir"
        )


def conclude(run: Run, workdir: Path) -> Evaluation:
    """Calibrates and measures the best checkpoint and writes what people take away: evaluation, report, ONNX file."""
    calibration = _calibrate(run, workdir)
    classifier, held_out = open_classifier(workdir), run.dataset.validation
    measure = partial(evaluate, classes=len(classifier.names), batch_size=run.config.batch_size)
    evaluation = measure(classifier.logits, held_out)
    # Pictures whose classes mirroring may change, such as digits, are not trained with it.
    flipped = measure(with_mirror_image(classifier.logits), held_out) if run.config.augment.flip else None
    about = describe(classifier, path=workdir, dataset=run.dataset, split="validation")
    write_evaluation(evaluation, Workdir(workdir).evaluation, names=classifier.names, about=about, flipped=flipped)
    report.write_report(workdir, evaluation, run.dataset, calibration=calibration)
    try:
        export.export_workdir(workdir, pictures=run.dataset.validation.images[:7])
    except (export.UnsupportedError, export.VerificationError) as error:
        raise UserError(f"{workdir} is trained and saved, but not exported: {error}") from error
    return evaluation


def _calibrate(run: Run, workdir: Path) -> Calibration:
    """Fits the temperature of the best checkpoint to the validation pictures."""
    best, held_out = load_model(workdir), run.dataset.validation
    logits = partial(eval_step, best.variables, model=best.model)
    found = [values[batch.mask] for values, batch in predict(logits, held_out, batch_size=run.config.batch_size)]
    calibration = calibrate(np.concatenate(found), held_out.labels, step=best.step)
    write_calibration(calibration, Workdir(workdir).calibration)
    return calibration


def _say_start(run: Run, workdir: Path, *, step: int, weights: Weights | None) -> None:
    """Prints what is trained on what, and what it begins with."""
    dataset = run.dataset
    console.print(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.validation):,} validation pictures, "
        f"{len(dataset.names)} classes; {run.config.model.name} on {describe_devices()}; {workdir}",
        soft_wrap=True,
    )
    if step:
        console.print(f"going on from step {step:,} of {run.total_steps:,}")
    if weights is not None:
        same_classes = weights.has_classes(dataset.names, dataset.wnids)
        head = "the classifier too, for the same classes" if same_classes else "with a new classifier"
        console.print(f"initial weights: {weights.source}, trained on {weights.dataset}, {head}", soft_wrap=True)


if __name__ == "__main__":
    cli.run(main, PROG)
