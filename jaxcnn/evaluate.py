"""Measures a trained model: `python -m jaxcnn.evaluate WORKDIR_OR_ONNX [--data.field VALUE ...]`."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy.special import log_softmax

from jaxcnn import cli, data
from jaxcnn.classifier import Classifier, LogitsFunction, open_classifier
from jaxcnn.config import DataConfig
from jaxcnn.data.batches import EvalBatch, eval_batches
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.evaluation_data import defaults_of_options, load_evaluation_data
from jaxcnn.leakage import check_no_leakage, is_of_run
from jaxcnn.metrics import Evaluation, score, summarize
from jaxcnn.run.workdir import Workdir

PROG = "python -m jaxcnn.evaluate"
SPLITS = {"validation": ("validation",), "train": ("train",), "all": ("train", "validation")}
"""What `--split` stands for."""


@dataclass(frozen=True)
class Arguments:
    """The command line of an evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["validation", "train", "all"] = "validation"
    """Which pictures of the data to measure on.
    A source without validation pictures has some held out: those that the run held out, or a tenth of another source.
    `all` is both parts."""
    flip: bool = False
    """Measure as well with the probabilities of each picture and its mirror image averaged.
    Done by default, as at the end of a run, if the model was trained with mirror images."""
    output: Path | None = None
    """The JSON file to write.
    None: evaluation.json in the workdir, or beside its model.onnx.
    Other models and other pictures have their own, such as evaluation-model.int8.json and evaluation-all-other.json."""

    def __post_init__(self) -> None:
        if self.output is not None and self.output.is_dir():
            raise UserError(f"output is {str(self.output)!r}, which is a folder; give the name of a file in it")


def main(arguments: Sequence[str]) -> None:
    """Evaluates as the command line says, prints the result and writes it as JSON."""
    if not arguments or arguments[0].startswith("-"):
        parse(Arguments(), arguments)  # prints the help and ends, if that is asked for
        raise UserError(f"give a workdir or an .onnx file first, such as: {PROG} runs/digits")
    path = Path(arguments[0])
    classifier = open_classifier(path)
    trained_on = Workdir(path).read_data_config() if path.is_dir() else classifier.config.data
    parsed = parse(Arguments(trained_on, flip=classifier.config.augment.flip), arguments[1:])
    output = parsed.output or default_output(path, parsed, trained_on=trained_on)
    check_output(output)
    dataset = load_evaluation_data(parsed.data, classifier, hold_out=parsed.split != "all")
    if parsed.split != "all":
        # A file may be older than the record in it, and lie in its run's folder.
        began = classifier.pictures or _run_of(path).read_pictures()
        check_no_leakage(dataset, parsed.data, trained_on=trained_on, began=began)
    splits = [getattr(dataset, name) for name in SPLITS[parsed.split]]
    measure = partial(
        evaluate, classes=len(classifier.names), batch_size=classifier.config.batch_size, show_progress=True
    )
    evaluation = measure(classifier.logits, *splits)
    flipped = measure(with_mirror_image(classifier.logits), *splits) if parsed.flip else None
    total = len(dataset.train) + len(dataset.validation)
    title = f"{path} on {dataset.name}, {parsed.split}: {evaluation.count:,} of its {total:,} pictures"
    print_evaluation(evaluation, names=classifier.names, title=title, flipped=flipped)
    about = describe(classifier, path=path, dataset=dataset, split=parsed.split)
    write_evaluation(evaluation, output, names=classifier.names, about=about, flipped=flipped)
    Console(highlight=False).print(_label(f"written to {output}"), soft_wrap=True)


def parse(defaults: Arguments, arguments: Sequence[str]) -> Arguments:
    """Reads the options of a command line.

    Raises:
      UserError: an option that does not exist, or a value it cannot have.
    """
    return cli.parse(
        dataclasses.replace(defaults, data=defaults_of_options(defaults.data, arguments)),
        arguments,
        prog=f"{PROG} WORKDIR_OR_ONNX",
        description="Measures a trained model: the best checkpoint of a run in its workdir, or an .onnx file. "
        "The data defaults to what the model was trained on.",
    )


def evaluate(
    logits: LogitsFunction, *splits: data.Split, classes: int, batch_size: int, show_progress: bool = False
) -> Evaluation:
    """Measures a model on every picture of one or more splits.

    Args:
      logits: a batch of uint8 pictures [batch, side, side, 3] to float32 logits [batch, classes].
      splits: at least one picture.
      show_progress: draws a bar on stderr if that is a terminal.

    Raises:
      UserError: a logit is not finite, or there are no pictures.
    """
    if not any(map(len, splits)):
        raise UserError("there are no pictures to evaluate in this split; choose another --split or another source")
    console = Console(stderr=True)
    batches = track(
        itertools.chain(*(predict(logits, split, batch_size=batch_size) for split in splits)),
        "evaluating",
        total=sum(-(-len(split) // batch_size) for split in splits),
        console=console,
        transient=True,
        disable=not (show_progress and console.is_terminal),
    )
    outcomes = [score(values, batch.labels, batch.mask) for values, batch in batches]
    return summarize(outcomes, classes=classes)


def predict(
    logits: LogitsFunction, split: data.Split, *, batch_size: int
) -> Iterator[tuple[Float32[np.ndarray, "batch classes"], EvalBatch]]:
    """The logits of every picture of a split, batch by batch.

    Raises:
      UserError: one is not finite.
    """
    for number, batch in enumerate(eval_batches(split, batch_size=batch_size)):
        values = np.asarray(logits(batch.images))
        _check_finite(values[batch.mask], first_picture=number * batch_size)
        yield values, batch


def with_mirror_image(logits: LogitsFunction) -> LogitsFunction:
    """A model whose probabilities are the mean of a model's for a picture and for its mirror image.

    It returns their logarithms: the softmax of those is they themselves.
    """

    def averaged(images: UInt8[np.ndarray, "batch side side 3"]) -> Float32[np.ndarray, "batch classes"]:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        with np.errstate(invalid="ignore"):  # padding may give anything
            one, other = (log_softmax(np.asarray(logits(each), np.float64), axis=1) for each in (images, mirrored))
            return np.asarray(np.logaddexp(one, other) - np.log(2), np.float32)

    return averaged


def default_output(path: Path, arguments: Arguments, *, trained_on: DataConfig) -> Path:
    """Where the result goes unless told otherwise: a run's record is of its model on its validation pictures."""
    run = _run_of(path)
    kinds = [
        path.stem if not path.is_dir() and path.name != run.onnx.name else "",
        arguments.split if arguments.split != "validation" else "",
        "other" if not is_of_run(arguments.data, trained_on=trained_on) else "",
    ]
    return run.evaluation.with_name("-".join(["evaluation", *filter(None, kinds)]) + ".json")


def check_output(output: Path) -> None:
    """Raises a `UserError` if an evaluation would replace a file that is none, such as a model or a run's settings."""
    if output.exists() and not _is_evaluation(output):
        raise UserError(
            f"the evaluation would overwrite {output}, which is something else; give the name of a new file, or of an "
            "earlier evaluation, with --output"
        )


def _is_evaluation(path: Path) -> bool:
    """Whether a file is an evaluation, or empty."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(1)  # models and archives are large: only what may be a JSON object is read on
            return not start or (start == b"{" and "per_class" in json.loads(start + file.read()))
    except (OSError, ValueError):
        return False


def _run_of(path: Path) -> Workdir:
    """The run that a model is of: the folder itself, or the one that a file lies in."""
    return Workdir(path if path.is_dir() else path.parent)


def describe(classifier: Classifier, *, path: Path, dataset: data.Dataset, split: str) -> dict[str, Any]:
    """What is measured, as an evaluation's record has it."""
    return {
        "model": str(path),
        "step": classifier.step,
        "temperature": classifier.temperature,
        "dataset": dataset.name,
        "split": split,
    }


def write_evaluation(
    evaluation: Evaluation,
    path: Path,
    *,
    names: Sequence[str],
    about: Mapping[str, Any] | None = None,
    flipped: Evaluation | None = None,
) -> None:
    """Writes an evaluation as JSON: its `record` after what was measured, `about`.

    Raises:
      UserError: the file cannot be written.
    """
    told = {**(about or {}), **record(evaluation, names=names, flipped=flipped)}
    try:
        write_atomically(path, json.dumps(told, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"the evaluation cannot be written to {path}: {error.strerror}") from error


def record(evaluation: Evaluation, *, names: Sequence[str], flipped: Evaluation | None = None) -> dict[str, Any]:
    """An evaluation for JSON; what has no value, such as the accuracy of a class without pictures, is null.

    Args:
      names: of the classes.
      flipped: the same averaged with mirror images, of which the figures are told.
    """
    bins = evaluation.reliability
    counts = evaluation.confusion.sum(axis=1)
    return {
        "count": evaluation.count,
        **evaluation.scalars(),
        **({} if flipped is None else {"with_flip": flipped.scalars()}),
        "per_class": [
            {"name": name, "count": int(count), "top1": _number(top1)}
            for name, count, top1 in zip(names, counts, evaluation.per_class, strict=True)
        ],
        "reliability": [
            {"count": int(count), "confidence": _number(confidence), "accuracy": _number(accuracy)}
            for count, confidence, accuracy in zip(bins.count, bins.confidence, bins.accuracy, strict=True)
        ],
        "confusion": evaluation.confusion.tolist(),
    }


def print_evaluation(
    evaluation: Evaluation, *, names: Sequence[str], title: str, flipped: Evaluation | None = None
) -> None:
    """Prints the figures, the worst classes and the most frequent confusions, ten of each."""
    console = Console(highlight=False)
    counts = evaluation.confusion.sum(axis=1)
    columns = [evaluation] if flipped is None else [evaluation, flipped]
    figures = _table("", *[">"] if flipped is None else [">as it is", ">with mirror image"])
    figures.add_row("top-1", *(f"{each.top1:.4f}" for each in columns))
    figures.add_row("top-5", *(f"{each.top5:.4f}" for each in columns))
    figures.add_row("loss", *(f"{each.loss:.4f}" for each in columns))
    figures.add_row("calibration error", *(f"{each.ece:.4f}" for each in columns))
    figures.add_row("pictures", f"{evaluation.count:,}")
    worst = _table("worst classes", ">top-1", ">pictures")
    for i in evaluation.worst_classes()[:10]:
        worst.add_row(_label(names[i]), f"{evaluation.per_class[i]:.4f}", f"{counts[i]:,}")
    confused = _table("confused class", "taken for", ">times")
    for pair in evaluation.confusions()[:10]:
        confused.add_row(_label(names[pair.true]), _label(names[pair.predicted]), f"{pair.count:,}")
    console.print(_label(title), soft_wrap=True)
    for table in (figures, worst, confused):
        if table.row_count:
            console.print(table)


def _table(*headers: str) -> Table:
    """An empty table; `>` before a header aligns its column to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_header=any(each.strip(">") for each in headers))
    for each in headers:
        table.add_column(each.lstrip(">"), justify="right" if each.startswith(">") else "left")
    return table


def _check_finite(values: np.ndarray, *, first_picture: int) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise UserError(
            f"the model's outputs for picture {first_picture + bad.argmax()} of the split are not finite numbers; "
            "it has diverged: train again with a lower --optim.learning_rate"
        )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _label(text: str) -> Text:
    """Text that is shown as it is, brackets too."""
    return Text(cli.printable(text))


if __name__ == "__main__":
    cli.run(main, PROG)
