"""Which pictures of a source are held out, and whether a model has learnt from some of them."""

import dataclasses
import os

from jaxcnn import data
from jaxcnn.config import DataConfig
from jaxcnn.data import Dataset, Fingerprint, is_named
from jaxcnn.errors import UserError


def is_same_source(one: str, other: str) -> bool:
    """Whether two settings name the same pictures: by the same name, or by paths to the same place."""
    if is_named(one) or is_named(other):
        return one == other
    return _place(one) == _place(other)


def is_of_run(config: DataConfig, *, trained_on: DataConfig) -> bool:
    """Whether these are the pictures that a run was trained on and measured with."""
    return is_same_source(config.source, trained_on.source) and _split_settings(config) == _split_settings(trained_on)


def load_without_hold_out(config: DataConfig) -> Dataset:
    """Loads a source with its own validation split if it has one; otherwise all pictures are training pictures."""
    return data.load(dataclasses.replace(config, validation_fraction=None), hold_out=False)


def check_no_leakage(
    dataset: Dataset, config: DataConfig, *, trained_on: DataConfig, began: Fingerprint | None
) -> None:
    """Raises a `UserError` if others of a model's pictures are held out than when it was trained: it has seen some.

    Validation pictures of a source's own may change, and those of other sources are nothing to the model. Its own are
    known by their place, or by what they are.

    Args:
      dataset: the pictures, split as `config` says.
      trained_on: what the model was trained on.
      began: fingerprint of the split the model was trained on; None if the model does not record it.
    """
    if config.validation_fraction is None and len(load_without_hold_out(config).validation):
        return
    if not (is_same_source(config.source, trained_on.source) or _has_pictures_of(config, trained_on, began)):
        return
    if _split_settings(config) != _split_settings(trained_on):
        fraction, seed = _split_settings(trained_on)
        raise UserError(
            f"with data.validation_fraction {config.validation_fraction} and data.split_seed {config.split_seed} some "
            f"pictures of {dataset.name} would be held out that the model was trained on; give "
            f"--data.validation_fraction {fraction} --data.split_seed {seed}, as then"
        )
    if began is not None and not began.has_same_split(dataset.fingerprint()):
        raise UserError(
            f"the pictures of {dataset.name} have changed since the model was trained, so that some which would be "
            "held out now may be ones that it was trained on; put them back as they were, hold out a val/ folder of "
            "your own or, if they are not the model's but lie where those did, rename their folder"
        )


def _has_pictures_of(config: DataConfig, trained_on: DataConfig, began: Fingerprint | None) -> bool:
    """Whether a source in another place has the very pictures: a copy, or a zip of the folder."""
    if began is None:
        return False
    fraction, seed = _split_settings(trained_on)
    # In the model's size only if they may be the same: they may have to be decoded for that.
    return all(
        began.has_same_split(
            data.load(
                dataclasses.replace(config, validation_fraction=fraction, split_seed=seed, image_size=side)
            ).fingerprint()
        )
        for side in dict.fromkeys((config.image_size, began.side))
    )


def _place(path: str) -> str:
    try:
        return os.path.realpath(os.path.expanduser(path))
    except ValueError:  # no path: it has a null character
        return path


def _split_settings(config: DataConfig) -> tuple[float | None, int]:
    return config.validation_fraction, config.split_seed
