"""Pictures from any source, decoded once, in an order that only the seed and the epoch decide."""

from jaxcnn.data.batches import Batch, EvalBatch, epoch_order, eval_batches, steps_per_epoch, train_batches
from jaxcnn.data.dataset import Dataset, Fingerprint, Split
from jaxcnn.data.loading import is_named, load

__all__ = [
    "Batch",
    "Dataset",
    "EvalBatch",
    "Fingerprint",
    "Split",
    "epoch_order",
    "eval_batches",
    "is_named",
    "load",
    "steps_per_epoch",
    "train_batches",
]
