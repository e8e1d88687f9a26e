"""The pictures that a trained model is measured on, with its classes, and never ones that it was trained on."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from jaxcnn import data
from jaxcnn.classifier import Classifier
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.workdir import Workdir


def load_evaluation_data(config: DataConfig, classifier: Classifier, *, divided: bool) -> data.Dataset:
    """Loads the data to measure on, `divided` as `data.load` does, with the model's classes in the model's order.

    Raises:
      UserError: it cannot be loaded, its pictures have another size, or a class of it is not one of the model's.
    """
    side = classifier.config.data.image_size
    if config.image_size != side:
        raise UserError(f"data.image_size is {config.image_size}, but the model takes {side}; leave it out")
    dataset = data.load(config, divided=divided)
    indices = class_indices(dataset, classifier)
    train, validation = (
        dataclasses.replace(split, labels=indices[split.labels]) for split in (dataset.train, dataset.validation)
    )
    return dataclasses.replace(
        dataset, names=classifier.names, wnids=classifier.wnids, train=train, validation=validation
    )


def class_indices(dataset: data.Dataset, classifier: Classifier) -> Int32[np.ndarray, " classes"]:
    """The model's index of each class of the data, which may have fewer, in another order.

    WordNet ids tell them where both have them: names may be of two classes, such as the crane. A folder may be named
    by either.
    """
    found = dataset.wnids if classifier.wnids and dataset.wnids else dataset.names
    if found in (classifier.wnids, classifier.names):
        return np.arange(len(found), dtype=np.int32)
    known = {name: i for names in (classifier.names, classifier.wnids) for i, name in enumerate(names)}
    for name in found:
        if name not in known:
            first = ", ".join(map(repr, classifier.names[:3]))
            raise UserError(
                f"the class {name!r} of {dataset.name} is none of the model's {len(classifier.names)}, which begin "
                f"with {first}; give the data it was trained on, or some with classes of these names"
            )
    return np.array([known[name] for name in found], np.int32)


def is_of_run(config: DataConfig, *, trained_on: DataConfig) -> bool:
    """Whether these are the pictures that a run was trained on and measured with."""
    return all(
        getattr(config, name) == getattr(trained_on, name) for name in ("source", "validation_fraction", "split_seed")
    )


def refuse_other_division(dataset: data.Dataset, config: DataConfig, run: Workdir) -> None:
    """Raises a `UserError` if others of a run's pictures would be held out than when it began: it has seen some.

    Those of a source with validation pictures of its own may change.
    """
    began = run.read_pictures() if (run.path / "config.json").exists() else None
    if began is None or began.divides_as(dataset.fingerprint()) or len(data.load(config, divided=False).validation):
        return
    raise UserError(
        f"the pictures of {dataset.name} have changed since the run in {run.path} began, so that some which would be "
        "held out now are ones that it was trained on; put them back as they were, or give others by --data.source"
    )
