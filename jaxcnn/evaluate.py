"""Measures a trained model: `python -m jaxcnn.evaluate WORKDIR_OR_ONNX [--data.field VALUE ...]`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from jaxcnn import cli, data
from jaxcnn.classifier import Classifier, LogitsFunction, open_classifier
from jaxcnn.config import DataConfig
from jaxcnn.data.batches import eval_batches
from jaxcnn.errors import UserError
from jaxcnn.metrics import Evaluation, score, summarize
from jaxcnn.workdir import Workdir, write_atomically

PROG = "python -m jaxcnn.evaluate"


@dataclass(frozen=True)
class Arguments:
    """The command line of an evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    split: Literal["validation", "train"] = "validation"
    """Which pictures of the data to measure on."""
    output: Path | None = None
    """The JSON file to write.
    None: evaluation.json in the workdir or beside the .onnx file, evaluation-train.json for the training pictures."""


def main(arguments: Sequence[str]) -> None:
    """Evaluates as the command line says, prints the result and writes it as JSON."""
    if not arguments or arguments[0].startswith("-"):
        parse(DataConfig(), arguments)  # prints the help and ends, if that is asked for
        raise UserError(f"give a workdir or an .onnx file first, such as: {PROG} runs/digits")
    path = Path(arguments[0])
    classifier = open_classifier(path)
    parsed = parse(classifier.config.data, arguments[1:])
    dataset = load_data(parsed.data, classifier)
    evaluation = evaluate(
        classifier.logits,
        getattr(dataset, parsed.split),
        classes=len(classifier.names),
        batch_size=classifier.config.batch_size,
        show_progress=True,
    )
    about = {"model": str(path), "dataset": dataset.name, "split": parsed.split}
    output = parsed.output or default_output(path, parsed.split)
    print_evaluation(evaluation, names=classifier.names, title=f"{path} on {dataset.name}, {parsed.split}")
    write_evaluation(evaluation, output, names=classifier.names, about=about)
    Console(highlight=False).print(_label(f"written to {output}"), soft_wrap=True)


def parse(defaults: DataConfig, arguments: Sequence[str]) -> Arguments:
    """Reads the options of a command line.

    Raises:
      UserError: an option that does not exist, or a value it cannot have.
    """
    if any(each.split("=")[0] == "--data.source" for each in arguments):
        defaults = dataclasses.replace(defaults, archive=None)  # an archive belongs to the source it was given with
    return cli.parse(
        Arguments(defaults),
        arguments,
        prog=f"{PROG} WORKDIR_OR_ONNX",
        description="Measures a trained model: the best checkpoint of a run in its workdir, or an .onnx file. "
        "The data defaults to what the model was trained on.",
    )


def evaluate(
    logits: LogitsFunction, split: data.Split, *, classes: int, batch_size: int, show_progress: bool = False
) -> Evaluation:
    """Measures a model on every picture of a split.

    Args:
      logits: a batch of uint8 pictures [batch, side, side, 3] to float32 logits [batch, classes].
      split: at least one picture.
      show_progress: draws a bar on stderr if that is a terminal.

    Raises:
      UserError: a logit is not finite, or there are no pictures.
    """
    if len(split) == 0:
        raise UserError("there are no pictures to evaluate in this split; choose another --split or another source")
    console = Console(stderr=True)
    batches = track(
        eval_batches(split, batch_size=batch_size),
        "evaluating",
        total=-(-len(split) // batch_size),
        console=console,
        transient=True,
        disable=not (show_progress and console.is_terminal),
    )
    outcomes = []
    for number, batch in enumerate(batches):
        values = np.asarray(logits(batch.images))
        _refuse_not_finite(values[batch.mask], first_picture=number * batch_size)
        outcomes.append(score(values, batch.labels, batch.mask))
    return summarize(outcomes, classes=classes)


def load_data(config: DataConfig, classifier: Classifier) -> data.Dataset:
    """Loads the data to measure on.

    Raises:
      UserError: it cannot be loaded, or its pictures or classes are not the model's; the first difference is named.
    """
    side = classifier.config.data.image_size
    if config.image_size != side:
        raise UserError(f"data.image_size is {config.image_size}, but the model takes {side}; leave it out")
    dataset = data.load(config)
    have_wnids = bool(dataset.wnids and classifier.wnids)
    kind, found, expected = (
        ("wnid", dataset.wnids, classifier.wnids) if have_wnids else ("class", dataset.names, classifier.names)
    )
    for i in range(max(len(found), len(expected))):
        there, here = (repr(each[i]) if i < len(each) else "absent" for each in (found, expected))
        if there != here:
            raise UserError(
                f"the classes of {dataset.name} are not the model's: {kind} {i} is {there} in the data, {here} in the "
                "model; give the data it was trained on, or some with the same classes"
            )
    return dataset


def default_output(path: Path, split: str) -> Path:
    """Where the result goes unless told otherwise: the training pictures leave the record of the others alone."""
    folder = path.parent if path.is_file() else path
    return Workdir(folder).evaluation if split == "validation" else folder / f"evaluation-{split}.json"


def write_evaluation(
    evaluation: Evaluation, path: Path, *, names: Sequence[str], about: Mapping[str, str] | None = None
) -> None:
    """Writes an evaluation as JSON; what has no value, such as the accuracy of a class without pictures, is null.

    Args:
      names: of the classes.
      about: what was measured, put first.

    Raises:
      UserError: the file cannot be written.
    """
    bins = evaluation.reliability
    counts = evaluation.confusion.sum(axis=1)
    record = {
        **(about or {}),
        "count": evaluation.count,
        **evaluation.scalars(),
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
    try:
        write_atomically(path, json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"the evaluation cannot be written to {path}: {error.strerror}") from error


def print_evaluation(evaluation: Evaluation, *, names: Sequence[str], title: str) -> None:
    """Prints the figures, the worst classes and the most frequent confusions, ten of each."""
    console = Console(highlight=False)
    counts = evaluation.confusion.sum(axis=1)
    figures = _table("", ">")
    figures.add_row("top-1", f"{evaluation.top1:.4f}")
    figures.add_row("top-5", f"{evaluation.top5:.4f}")
    figures.add_row("loss", f"{evaluation.loss:.4f}")
    figures.add_row("calibration error", f"{evaluation.ece:.4f}")
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


def _refuse_not_finite(values: np.ndarray, *, first_picture: int) -> None:
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
