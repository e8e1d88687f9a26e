"""Leakage: whether pictures that a model was trained on would be held out to validate it."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data import Dataset, Fingerprint, is_named
from jaxcnn.data.dataset import identify
from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import imagenet

MOST_SEEN = 0.5
"""Share of validation pictures that a model may have been trained on, by an estimate, before they are refused."""
FEWEST = 3
"""Least number of different pictures that a share is estimated from: one that occurs often, such as a black one, says
nothing about the others."""


def is_same_source(one: str, other: str) -> bool:
    """Whether two values of `data.source` mean one source: the same name, or paths to one place. '' means none."""
    if not (one and other):
        return False
    if is_named(one) or is_named(other):
        return one == other
    return _resolve(one) == _resolve(other)


def is_same_data(one: DataConfig, other: DataConfig) -> bool:
    """Whether two settings mean the same source with the same split."""
    return is_same_source(one.source, other.source) and _split_settings(one) == _split_settings(other)


def load_without_hold_out(config: DataConfig) -> Dataset:
    """Loads a source with its own validation split if it has one; otherwise all pictures are training pictures."""
    return data.load(dataclasses.replace(config, validation_fraction=None), hold_out=False)


def check_no_leakage(
    dataset: Dataset, config: DataConfig, *, trained_on: DataConfig, fingerprint: Fingerprint | None
) -> str | None:
    """Raises a `UserError` if a model was trained on pictures that would be validation pictures.

    If pictures are held out of the source that the model was trained on, they have to be split as in training. The
    source is recognised in the same place, and in another one by its pictures. All other validation pictures are
    compared with the training pictures that the fingerprint identifies.

    Args:
      dataset: the pictures, split as `config` says.
      config: where they come from.
      trained_on: what the model was trained on.
      fingerprint: fingerprint of the split that the model was trained on; None if that was not recorded.

    Returns:
      A warning if the model was trained on a few validation pictures, or on many that `config` allows; None otherwise.
    """
    is_held_out = config.validation_fraction is not None or not len(load_without_hold_out(config).validation)
    if is_held_out and (is_same_source(config.source, trained_on.source) or _is_copy(config, trained_on, fingerprint)):
        _check_same_split(dataset, config, trained_on=trained_on, fingerprint=fingerprint)
        return None
    if fingerprint is None or not fingerprint.seen:
        fingerprint = _find_fingerprint(config, trained_on, fingerprint)
    return None if fingerprint is None else _check_unseen(dataset, config, fingerprint)


def _check_same_split(
    dataset: Dataset, config: DataConfig, *, trained_on: DataConfig, fingerprint: Fingerprint | None
) -> None:
    """Raises UserError if other pictures than in training would be held out of the same source."""
    # The same pictures with another split.
    if _split_settings(config) != _split_settings(trained_on):
        fraction, seed = _split_settings(trained_on)
        raise UserError(
            f"with data.validation_fraction {config.validation_fraction} and data.split_seed {config.split_seed} some "
            f"pictures of {dataset.name} would be held out that the model was trained on; give "
            f"--data.validation_fraction {fraction} --data.split_seed {seed}, as in its training"
        )
    # The same split of pictures that are no longer the same: one more, or one less, changes all that is held out.
    if fingerprint is not None and not fingerprint.has_same_split(dataset.fingerprint()):
        raise UserError(
            f"the pictures of {dataset.name} have changed since the model was trained, so that some that it was "
            "trained on may be held out now; put them back as they were, put validation pictures into a val/ folder "
            "or, if these are other pictures in the same place, rename their folder"
        )


def _find_fingerprint(
    config: DataConfig, trained_on: DataConfig, fingerprint: Fingerprint | None
) -> Fingerprint | None:
    """Returns the fingerprint of the training pictures if a source is a part of their folder, which is as it was.

    Records of earlier versions identify no training pictures.
    """
    if not trained_on.source or is_named(config.source) or is_named(trained_on.source):
        return None
    if Path(_resolve(trained_on.source)) not in Path(_resolve(config.source)).parents:
        return None
    try:
        found = data.load(dataclasses.replace(trained_on, cache_dir=config.cache_dir)).fingerprint()
    except UserError:  # They are gone, or can no longer be read.
        return None
    return found if fingerprint is None or fingerprint.has_same_split(found) else None


def _check_unseen(dataset: Dataset, config: DataConfig, fingerprint: Fingerprint) -> str | None:
    """Does what `check_no_leakage` does for pictures of another source, or of a source with its own validation split.

    The fingerprint identifies a sample of the training pictures. From the number of validation pictures that are among
    them, the share that the model was trained on is estimated.
    """
    here, known = dataset.fingerprint(), fingerprint.identities()
    if not known or fingerprint.has_same_split(here):
        return None
    # Pixels are comparable only if they were resized as in training. Numbers alone rule out most sources in the size
    # at hand, without decoding all pictures again.
    if not fingerprint.is_comparable(here):
        count = len(dataset.train) + len(dataset.validation)
        if count not in (fingerprint.train, fingerprint.train + fingerprint.validation):
            return None
        dataset = data.load(_resized_as(config, fingerprint))
        if not fingerprint.is_comparable(dataset.fingerprint()):
            return None
    split, sample = dataset.validation, frozenset(known)
    seen = {row: name for row, name in enumerate(identify(split, np.arange(len(split)))) if name in sample}
    if not seen:
        return None
    found = (
        f"at least {len(seen):,} of the {len(split):,} validation pictures of {dataset.name} are pictures that the "
        f"model was trained on, such as {split.file(min(seen))}"
    )
    different = len(set(seen.values()))
    is_enough = different >= FEWEST or len(known) >= fingerprint.train
    are_many = is_enough and different * fingerprint.train >= MOST_SEEN * len(split) * len(known)
    if are_many and not config.allow_leaks and not is_named(config.source):
        raise UserError(
            f"{found}: the accuracy would be too high; validate with pictures that it has not seen, or allow these "
            "with --data.allow_leaks"
        )
    return f"{found}: expect less accuracy on other pictures"


def describe_overlap(dataset: Dataset, *, trained_on: Iterable[str]) -> str | None:
    """Returns a warning if weights that others trained have probably seen the validation pictures; None otherwise.

    Which pictures others held out is not recorded. Data with ImageNet's WordNet ids is taken for pictures of ImageNet.
    The weights of EfficientNet-Lite0 are as accurate on the validation pictures of Tiny ImageNet as on its training
    pictures (.546 of 3,000 each), so both seem to be training pictures of ImageNet.

    Args:
      dataset: the pictures.
      trained_on: names of the data sets behind the weights.
    """
    _, wnids = imagenet.imagenet_classes()
    if imagenet.NAME not in trained_on or not dataset.wnids or not {*dataset.wnids} <= {*wnids}:
        return None
    return (
        f"the initial weights have probably seen the validation pictures of {dataset.name}, which come from ImageNet: "
        "expect less accuracy on other pictures"
    )


def _is_copy(config: DataConfig, trained_on: DataConfig, fingerprint: Fingerprint | None) -> bool:
    """Whether a source in another place has the pictures that a model was trained on, such as a zip of the folder."""
    if fingerprint is None:
        return False
    fraction, seed = _split_settings(trained_on)
    here = dataclasses.replace(config, validation_fraction=fraction, split_seed=seed).resolved()
    # Pixels are comparable only if they were resized as in training. Labels alone rule out most sources in the size at
    # hand, without decoding all pictures again.
    return all(
        fingerprint.has_same_split(data.load(settings).fingerprint())
        for settings in dict.fromkeys((here, _resized_as(here, fingerprint)))
    )


def _resized_as(config: DataConfig, fingerprint: Fingerprint) -> DataConfig:
    """Returns data settings that resize pictures as the fingerprint's pictures were resized."""
    side, resize = fingerprint.side, fingerprint.resize
    crop = None if resize.side is None else side / resize.side
    return dataclasses.replace(config, image_size=side, fit=resize.mode, crop=crop, filter=resize.filter)


def _resolve(path: str) -> str:
    try:
        return os.path.realpath(os.path.expanduser(path))
    except ValueError:  # A path with a null character.
        return path


def _split_settings(config: DataConfig) -> tuple[float | None, int]:
    return config.validation_fraction, config.split_seed
