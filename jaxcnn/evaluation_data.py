"""Loads the pictures that a trained model is measured on, with the model's class indices as labels."""

import dataclasses
import os
from collections import Counter
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from jaxcnn import data
from jaxcnn.classifier import Classifier
from jaxcnn.config import DataConfig
from jaxcnn.errors import UserError
from jaxcnn.leakage import check_no_leakage, is_same_source, load_without_hold_out
from jaxcnn.paths import composed
from jaxcnn.terminal import warn


@runtime_checkable
class HasClasses(Protocol):
    """A model that knows its classes."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order of the outputs."""

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids in the same order; empty if the data had none."""


def data_config_of(source: str | os.PathLike[str] | None, *, trained_on: DataConfig) -> DataConfig:
    """Returns the data settings for a source.

    Args:
      source: as `--data.source` takes it; None is the training data.
      trained_on: the data settings of the model. Another source has the same cache and pictures of the same size
        and fit, but neither the archive, the store, the held-out pictures nor the leaks that are allowed.
    """
    if source is None or is_same_source(os.fspath(source), trained_on.source):
        return trained_on
    defaults = DataConfig()
    return dataclasses.replace(
        trained_on,
        source=os.fspath(source),
        archive=defaults.archive,
        store=defaults.store,
        validation_fraction=defaults.validation_fraction,
        split_seed=defaults.split_seed,
        allow_leaks=defaults.allow_leaks,
    )


def load_evaluation_data(config: DataConfig, classifier: Classifier, *, hold_out: bool) -> data.Dataset:
    """Loads pictures, with the classes of the model in its order.

    Prints a warning if the model was trained on a few of the validation pictures.

    Args:
      config: which pictures.
      classifier: the model to measure.
      hold_out: hold out validation pictures if the source has none, those that the model was not trained on. False:
        all pictures are to be measured, so it does not matter which were trained on.

    Raises:
      UserError: the pictures cannot be loaded or have another size, a class is not one of the model's, or pictures that
        the model was trained on would be validation pictures.
    """
    if not config.source:
        raise UserError("the pictures that the model was trained on are not recorded; give some with --data.source")
    check_same_preparation(config, classifier.config.data)
    dataset = data.load(config) if hold_out else load_without_hold_out(config)
    dataset = with_classes_of(dataset, classifier)
    # After the labels were mapped, as they are a part of the fingerprint.
    if hold_out:
        trained_on, fingerprint = classifier.config.data, classifier.pictures
        if warning := check_no_leakage(dataset, config, trained_on=trained_on, fingerprint=fingerprint):
            warn(warning)
    return dataset


def check_same_preparation(config: DataConfig, trained_on: DataConfig) -> None:
    """Raises UserError if pictures would have another size than a model takes, or become squares in another way."""
    given, taken = config.resolved(), trained_on.resolved()
    for name in ("image_size", "fit", "crop", "filter"):
        value, expected = getattr(given, name), getattr(taken, name)
        if value != expected:
            raise UserError(f"data.{name} is {value}, but the model takes {expected}; give {expected} or leave it out")


def with_classes_of(dataset: data.Dataset, model: HasClasses) -> data.Dataset:
    """Returns the data with the classes of a model, which may have more, in another order.

    Raises:
      UserError: a class of the data is not one of the model's.
    """
    indices = class_indices(dataset, model)
    train, validation = (
        dataclasses.replace(split, labels=indices[split.labels]) for split in (dataset.train, dataset.validation)
    )
    return dataclasses.replace(dataset, names=model.names, wnids=model.wnids, train=train, validation=validation)


def class_indices(dataset: data.Dataset, model: HasClasses) -> Int32[np.ndarray, " classes"]:
    """Returns the model's index of each class of the data, which may have fewer, in another order.

    Classes are matched by WordNet id where both have them: two classes may share a name ("crane"). Folders may be named
    by either.

    Raises:
      UserError: a class of the data is not one of the model's, or may be several of them.
    """
    found = dataset.wnids if model.wnids and dataset.wnids else dataset.names
    if found in (model.wnids, model.names):
        return np.arange(len(found), dtype=np.int32)
    # Match by name or WordNet id.
    known = {composed(name): i for names in (model.names, model.wnids) for i, name in enumerate(names)}
    shared = Counter(map(composed, model.names))
    for name in found:
        if shared[composed(name)] > 1:
            raise UserError(
                f"the class {name!r} of {dataset.name} may be any of {shared[composed(name)]} classes of the model; "
                "name its folder by a WordNet id, or leave it out"
            )
        if composed(name) not in known:
            first = ", ".join(map(repr, model.names[:3]))
            raise UserError(
                f"the class {name!r} of {dataset.name} is not one of the model's {len(model.names)}, which begin "
                f"with {first}; give the data it was trained on, or some with classes of these names"
            )
    return np.array([known[composed(name)] for name in found], np.int32)
