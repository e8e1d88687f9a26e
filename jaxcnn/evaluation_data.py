"""The pictures that a trained model is measured on, with its classes; it has learnt nothing from those held out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from jaxcnn import cli, data
from jaxcnn.classifier import Classifier
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.leakage import is_same_source, load_without_hold_out
from jaxcnn.paths import composed


def defaults_of_options(trained_on: DataConfig, arguments: Sequence[str]) -> DataConfig:
    """Default data options of a command: those of the run; another source does not inherit its archive and split."""
    if is_same_source(cli.peek(arguments, "data.source", trained_on.source), trained_on.source):
        return trained_on
    return DataConfig(cache_dir=trained_on.cache_dir, image_size=trained_on.image_size)


def load_evaluation_data(config: DataConfig, classifier: Classifier, *, hold_out: bool) -> data.Dataset:
    """Loads the data to measure on, with the labels mapped to the model's class indices.

    Args:
      config: which pictures.
      classifier: the model.
      hold_out: as in `data.load`; False to measure on all pictures of the source.

    Raises:
      UserError: it cannot be loaded, its pictures have another size, or a class of it is not one of the model's.
    """
    side = classifier.config.data.image_size
    if config.image_size != side:
        raise UserError(f"data.image_size is {config.image_size}, but the model takes {side}; leave it out")
    dataset = data.load(config) if hold_out else load_without_hold_out(config)
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
    known = {composed(name): i for names in (classifier.names, classifier.wnids) for i, name in enumerate(names)}
    for name in found:
        if composed(name) not in known:
            first = ", ".join(map(repr, classifier.names[:3]))
            raise UserError(
                f"the class {name!r} of {dataset.name} is none of the model's {len(classifier.names)}, which begin "
                f"with {first}; give the data it was trained on, or some with classes of these names"
            )
    return np.array([known[composed(name)] for name in found], np.int32)
