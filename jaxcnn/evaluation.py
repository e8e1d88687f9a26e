"""Measures a trained model on labelled pictures."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from jaxcnn.classifier import Classifier, LogitsFunction, load
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Dataset, Split
from jaxcnn.data.batches import EvalBatch, eval_batches, eval_positions
from jaxcnn.errors import UserError
from jaxcnn.evaluation_data import data_config_of, load_evaluation_data
from jaxcnn.metrics import Evaluation, Outcomes, score, summarize
from jaxcnn.prediction import check_finite
from jaxcnn.terminal import with_bar

SplitName = Literal["validation", "train", "all"]
SPLITS: dict[SplitName, tuple[str, ...]] = {
    "validation": ("validation",),
    "train": ("train",),
    "all": ("train", "validation"),
}
"""The splits of a data set that each `SplitName` covers."""
MOST_AT_ONCE = 256
"""Most pictures that a loaded model computes at once: the batch of its training may have been for many devices."""


def evaluate(
    model: Classifier | str | os.PathLike[str],
    source: DataConfig | str | os.PathLike[str] | None = None,
    *,
    split: SplitName = "validation",
    flip: bool = False,
    show_progress: bool = False,
) -> Evaluation:
    """Measures a trained model on every picture of a split.

    Args:
      model: a workdir, an .onnx file that `python -m export` wrote, or a classifier from `load`.
      source: which pictures: a name, folder or zip as `--data.source` takes it, or all data settings. None: the data
        that the model was trained on. Its classes may be fewer than the model's, in another order.
      split: which part of the pictures. A source without a validation split has a share of each class held out: the
        same pictures as in training if they are the training data.
      flip: average the probabilities of each picture and its mirror image.
      show_progress: draw a progress bar on stderr if that is a terminal.

    Returns:
      Accuracy, loss and calibration error over the split, and the same within each class.

    Raises:
      UserError: the model or the pictures cannot be read, a class is not one of the model's, the split has no
        pictures or, except with `split="all"`, some of its validation pictures were trained on.
    """
    # The model, and the pictures with its class indices as labels.
    classifier = model if isinstance(model, Classifier) else load(model)
    config = source if isinstance(source, DataConfig) else data_config_of(source, trained_on=classifier.config.data)
    dataset = load_evaluation_data(config, classifier, hold_out=split != "all")
    # Every picture counts once.
    return measure(
        with_mirror_image(classifier.logits) if flip else classifier.logits,
        *choose_splits(dataset, split),
        classes=len(classifier.names),
        batch_size=batch_alone(classifier.config),
        show_progress=show_progress,
    )


def batch_alone(config: Config) -> int:
    """Returns how many pictures a model computes at once where it is loaded; that changes no result."""
    return min(config.batch_size, MOST_AT_ONCE)


def choose_splits(dataset: Dataset, split: SplitName) -> tuple[Split, ...]:
    """Returns the splits of a data set that `split` covers."""
    return tuple(getattr(dataset, name) for name in SPLITS[split])


def measure(
    logits: LogitsFunction,
    *splits: Split,
    classes: int,
    batch_size: int,
    show_progress: bool = False,
    rows: Int64[np.ndarray, " rows"] | None = None,
) -> Evaluation:
    """Measures a function that computes logits on every picture of one or more splits.

    Args:
      logits: maps uint8 pictures [batch, side, side, 3] to float32 logits [batch, classes].
      splits: labelled pictures; at least one in all.
      classes: the number of classes.
      batch_size: pictures in one call of `logits`; it changes no result.
      show_progress: draw a progress bar on stderr if that is a terminal.
      rows: positions in each batch that this process computes, if several processes measure together; `logits` then
        takes and returns these rows. None: this process computes all.

    Raises:
      UserError: a logit is not finite, or there are no pictures.
    """
    if not any(map(len, splits)):
        raise UserError("there are no pictures to evaluate in this split; choose another --split or another source")
    batches: Iterable[tuple[Float32[np.ndarray, "batch classes"], EvalBatch]] = itertools.chain(
        *(compute_logits(logits, split, batch_size=batch_size, rows=rows) for split in splits)
    )
    if show_progress:
        batches = with_bar(batches, "evaluating", total=sum(-(-len(split) // batch_size) for split in splits))
    # One outcome for each picture, summed up at the end: neither batches nor padding change a result.
    outcomes = [score(values, batch.labels, batch.mask) for values, batch in batches]
    if rows is not None:
        outcomes = [_join_processes(outcomes, *splits, batch_size=batch_size, rows=rows)]
    return summarize(outcomes, classes=classes)


def _join_processes(
    outcomes: Sequence[Outcomes], *splits: Split, batch_size: int, rows: Int64[np.ndarray, " rows"]
) -> Outcomes:
    """Returns the outcomes of all processes, in the order of the pictures."""
    from jaxcnn.distributed import gather_rows

    positions, first = [], 0
    for split in splits:
        positions.append(first + eval_positions(len(split), batch_size=batch_size, rows=rows))
        first += len(split)
    columns = [np.concatenate(parts) for parts in zip(*outcomes, strict=True)]
    # They travel as one table; a column of it is a number for each picture.
    tables = [column.reshape(len(column), -1) for column in columns]
    found = gather_rows(np.concatenate(positions), np.hstack([table.astype(np.float64) for table in tables]))
    parts = np.split(found, np.cumsum([table.shape[1] for table in tables])[:-1], axis=1)
    return Outcomes(
        *(part.astype(column.dtype).reshape(-1, *column.shape[1:]) for part, column in zip(parts, columns, strict=True))
    )


def compute_logits(
    logits: LogitsFunction, split: Split, *, batch_size: int, rows: Int64[np.ndarray, " rows"] | None = None
) -> Iterator[tuple[Float32[np.ndarray, "batch classes"], EvalBatch]]:
    """Yields the logits of every picture of a split, or of those rows of each batch, batch by batch.

    Raises:
      UserError: a logit is not finite.
    """
    for number, batch in enumerate(eval_batches(split, batch_size=batch_size, rows=rows)):
        values = np.asarray(logits(batch.images))
        positions = number * batch_size + (np.arange(batch_size) if rows is None else rows)
        check_finite(values[batch.mask], [f"picture {position} of the split" for position in positions])
        yield values, batch


def with_mirror_image(logits: LogitsFunction) -> LogitsFunction:
    """Returns a model whose probabilities are the mean of those for a picture and for its mirror image.

    Its logits are the logarithms of these probabilities: their softmax gives the probabilities back.
    """
    from scipy.special import log_softmax

    def averaged(images: UInt8[np.ndarray, "batch side side 3"]) -> Float32[np.ndarray, "batch classes"]:
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        # The logits of padding may be anything.
        with np.errstate(invalid="ignore"):
            plain, flipped = (log_softmax(np.asarray(logits(view), np.float64), axis=1) for view in (images, mirrored))
            return np.asarray(np.logaddexp(plain, flipped) - np.log(2), np.float32)

    return averaged
