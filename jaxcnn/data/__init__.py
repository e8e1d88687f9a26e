"""Data sets: pictures from any source, in an order that depends on seed and epoch alone."""

from jaxcnn.data.batches import Batch, EvalBatch, epoch_order, eval_batches, steps_per_epoch, train_batches
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.fingerprint import Fingerprint
from jaxcnn.data.loading import check_outside_pictures, check_source, is_named, load
from jaxcnn.data.resize import Resize
from jaxcnn.data.split import Split

__all__ = [
    "Batch",
    "Dataset",
    "EvalBatch",
    "Fingerprint",
    "Resize",
    "Split",
    "check_outside_pictures",
    "check_source",
    "epoch_order",
    "eval_batches",
    "is_named",
    "load",
    "steps_per_epoch",
    "train_batches",
]
