"""Measures a trained model: `python -m jaxcnn.evaluate WORKDIR_OR_ONNX [--data.field VALUE ...]`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jaxcnn import cli, data, options
from jaxcnn.classifier import load, read_config
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.evaluation import SplitName, batch_alone, choose_splits, measure, with_mirror_image
from jaxcnn.evaluation_data import data_config_of, load_evaluation_data
from jaxcnn.evaluation_record import (
    check_replaceable,
    describe_measured,
    measure_all,
    predictions_path,
    write_evaluation,
    write_predictions,
)
from jaxcnn.leakage import is_same_data, is_same_source
from jaxcnn.metrics import Evaluation
from jaxcnn.paths import check_output
from jaxcnn.run.workdir import Workdir
from jaxcnn.table import print_line, print_table
from jaxcnn.terminal import stage

PROG = "python -m jaxcnn.evaluate"
_FIGURES = {"top1": "top-1", "top5": "top-5", "loss": "loss", "ece": "calibration error"}
_BY_CLASS = {"balanced_accuracy": "balanced accuracy", "precision": "mean precision", "f1": "mean F1"}


@dataclass(frozen=True)
class Arguments:
    """The command line of an evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitName = "validation"
    """Which pictures of the data to measure on. A source without a validation split has some pictures held out: the
    same as in training if it is the training data, else a tenth. `all` is both parts."""
    flip: bool = False
    """Also measure with the probabilities of each picture and its mirror image averaged. On by default if the model was
    trained with mirror images."""
    output: Path | None = None
    """The JSON file to write; what the model says about each picture goes beside it, as CSV. None: evaluation.json and
    predictions.csv in the workdir, or beside its model.onnx. Other models and other pictures get longer names, such as
    evaluation-model.int8.json or evaluation-all-other.json."""


def main(arguments: Sequence[str]) -> None:
    """Evaluates as the command line says, prints the figures and writes them as JSON."""
    if not arguments or arguments[0].startswith("-"):
        parse(Arguments(), arguments, unknown={"data.": "as in training", "flip": "as in training"})  # Only for --help
        raise UserError(f"give a workdir or an .onnx file first, such as: {PROG} runs/digits")
    # The options default to the settings of the training. A mistake is reported before JAX is imported.
    path = Path(arguments[0])
    config = read_config(path)
    parsed = parse(Arguments(config.data, flip=config.mirrors), arguments[1:])
    if parsed.data.source:
        data.check_source(parsed.data)
    output = parsed.output or default_output(path, parsed, trained_on=config.data)
    check_output(output)
    check_replaceable(output)
    with stage(f"opening {path}"):
        classifier = load(path)
    # Plain, and with mirror images.
    dataset = load_evaluation_data(parsed.data, classifier, hold_out=parsed.split != "all")
    splits = choose_splits(dataset, parsed.split)
    measure_splits = partial(
        measure, classes=len(classifier.names), batch_size=batch_alone(classifier.config), show_progress=True
    )
    with stage("evaluating"):
        evaluation = measure_splits(classifier.logits, *splits)
        flipped = measure_splits(with_mirror_image(classifier.logits), *splits) if parsed.flip else None
    # Printed first, so that the figures are not lost if the file cannot be written.
    total = len(dataset.train) + len(dataset.validation)
    title = f"{path} on {dataset.name}, {parsed.split}: {evaluation.count:,} of its {total:,} pictures"
    print_evaluation(evaluation, names=classifier.names, title=title, flipped=flipped)
    about = describe_measured(classifier, dataset=dataset, split=parsed.split)
    write_evaluation(evaluation, output, names=classifier.names, about=about, flipped=flipped)
    predictions = predictions_path(output)
    write_predictions(evaluation, predictions, names=classifier.names, splits=splits)
    print_line(f"written to {output} and {predictions}")


def parse(defaults: Arguments, arguments: Sequence[str], *, unknown: Mapping[str, str] | None = None) -> Arguments:
    """Reads the options of a command line; for `unknown` see `options.parse`.

    Raises:
      UserError: an option does not exist, or its value is invalid.
    """
    source = options.peek(arguments, "data.source", None)
    return options.parse(
        dataclasses.replace(defaults, data=data_config_of(source, trained_on=defaults.data)),
        arguments,
        prog=f"{PROG} WORKDIR_OR_ONNX",
        description="Measures a trained model: the best checkpoint of a run, by its workdir, or an .onnx file. "
        "The data options default to the data that the model was trained on.",
        unknown=unknown,
    )


def default_output(path: Path, arguments: Arguments, *, trained_on: DataConfig) -> Path:
    """Returns the file for an evaluation: the run's own record only for the run's model on its validation pictures."""
    run, archives = Workdir(path if path.is_dir() else path.parent), (arguments.data.archive, trained_on.archive)
    # Archives of one data set may have other pictures, such as half of them.
    is_same_archive = archives[0] == archives[1] or is_same_source(*(archive or "" for archive in archives))
    kinds = [
        path.stem if not path.is_dir() and path.name != run.onnx.name else "",
        arguments.split if arguments.split != "validation" else "",
        "other" if not (is_same_data(arguments.data, trained_on) and is_same_archive) else "",
    ]
    return run.evaluation.with_name("-".join(["evaluation", *filter(None, kinds)]) + ".json")


def print_evaluation(
    evaluation: Evaluation, *, names: Sequence[str], title: str, flipped: Evaluation | None = None
) -> None:
    """Prints the figures, the worst classes and the most frequent confusions, ten of each."""
    print_line(title)
    columns = [evaluation] if flipped is None else [evaluation, flipped]
    # The figures, with mirror images beside the plain ones.
    measured = [measure_all(column) for column in columns]
    print_table(
        ["", *([">"] if flipped is None else [">plain", ">with mirror image"])],
        [
            *((label, *(f"{column.scalars()[key]:.4f}" for column in columns)) for key, label in _FIGURES.items()),
            *((label, *(f"{column[key]:.4f}" for column in measured)) for key, label in _BY_CLASS.items()),
            ("pictures", f"{evaluation.count:,}"),
        ],
    )
    # Where it fails most.
    counts = evaluation.cells.sum_by(evaluation.cells.true)
    print_table(
        ["worst classes", ">top-1", ">pictures"],
        [(names[i], f"{evaluation.per_class[i]:.4f}", f"{counts[i]:,}") for i in evaluation.worst_classes()[:10]],
    )
    print_table(
        ["true class", "predicted class", ">pictures"],
        [(names[pair.true], names[pair.predicted], f"{pair.count:,}") for pair in evaluation.confusions()[:10]],
    )


if __name__ == "__main__":
    cli.run(main, PROG)
