"""Trained weights to start another run from: by a name, a safetensors file that `python -m export` wrote, or a run."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from jaxcnn.checksum import KEY, checksum_array, checksum_record
from jaxcnn.config import SHAPE, DataConfig, ModelConfig
from jaxcnn.data import Fingerprint
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.leakage import is_same_data
from jaxcnn.metadata import Metadata
from jaxcnn.models import registry
from jaxcnn.models.pretrained import Pretrained, read_pretrained
from jaxcnn.processes import check_same
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.earlier_trainings import Training
from jaxcnn.run.lineage import describe_pretrained, trainings
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import Variables
from jaxcnn.weights_source import find_weights, not_ours, opened, read_metadata

_DTYPES = ("F16", "F32")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a trained network.

    Attributes:
      source: what they were read from.
      model: settings of the network.
      side: side in pixels of the pictures that it was trained for.
      trained_on: settings of the training data; None if others trained them.
      pictures: fingerprint of its split; None if that was not recorded.
      names: class names, in the order of the outputs.
      wnids: WordNet ids in the same order; empty if the data had none.
      dataset: name of the training data.
      trainings: every training behind the weights, from the first to the last.
      tensors: float32 parameters and batch statistics by path, such as `params/classifier/kernel`.
    """

    source: str
    model: ModelConfig
    side: int
    trained_on: DataConfig | None
    pictures: Fingerprint | None
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    dataset: str
    trainings: tuple[Training, ...]
    tensors: Mapping[str, np.ndarray]

    def has_classes(self, names: tuple[str, ...], wnids: tuple[str, ...]) -> bool:
        """Returns whether the classes are the same in the same order, by WordNet id too where both have them."""
        return names == self.names and (wnids == self.wnids or not (wnids and self.wnids))

    def has_head_for(self, model: ModelConfig, names: tuple[str, ...], wnids: tuple[str, ...]) -> bool:
        """Returns whether the classifier is for these classes in this order, and for the features that `model` has."""
        return self.has_classes(names, wnids) and model.pooling == self.model.pooling

    def fill(self, variables: Variables, *, with_head: bool) -> Variables:
        """Returns `variables` with these weights copied in, the head only if `with_head`.

        Raises:
          UserError: the network is not the one of the weights; names the first parameter that differs.
        """
        present = _by_path(variables)
        # Every path of either network: one that only the other has is an error, too.
        names = [name for name in {**present, **self.tensors} if with_head or not {*name.split("/")} & {*registry.HEAD}]
        for name in names:
            expected, found = _shape(present.get(name)), _shape(self.tensors.get(name))
            if found != expected:
                raise UserError(
                    f"the weights of {self.source} do not fit the network: {name} is {found} there, {expected} here; "
                    "give the model's settings that they were trained with"
                )
        # In the order of the tree, which `present` has.
        arrays = present | {name: self.tensors[name] for name in names}
        filled: Variables = jax.tree.unflatten(jax.tree.structure(variables), arrays.values())
        return filled


def read_weights(source: str) -> Weights:
    """Reads the weights that the setting `init_from` names.

    Raises:
      UserError: they do not exist, are not installed, or are damaged.
    """
    if (pretrained := read_pretrained(source)) is not None:
        return weights_of(pretrained, source=source)
    path = find_weights(source)
    if path.is_dir():
        return read_run(path, source=source)
    with opened(path) as file:
        _check_checksum(path, file)
        metadata = read_metadata(path, file)
        return Weights(
            source=source,
            model=metadata.config.model,
            side=metadata.config.data.image_size,
            trained_on=metadata.config.data,
            pictures=metadata.pictures,
            names=metadata.names,
            wnids=metadata.wnids,
            dataset=metadata.dataset,
            trainings=metadata.trainings,
            tensors={name: _read_tensor(path, file, name) for name in file.keys()},  # noqa: SIM118
        )


def read_same_weights(source: str) -> Weights:
    """Reads weights in every process of a run.

    Raises:
      UserError: as `read_weights`; or they are others in some process, as copies or downloads of another version are.
    """
    weights = read_weights(source)

    def describe() -> dict[str, str]:
        return {name: checksum_array(values) for name, values in weights.tensors.items()}

    check_same(f"weights in {source}", describe, advice="copy them from there")
    return weights


def weights_of(pretrained: Pretrained, *, source: str) -> Weights:
    """Returns weights that others trained, which `source` names, as weights to start from."""
    return Weights(
        source=source,
        model=pretrained.model,
        side=pretrained.side,
        trained_on=None,
        pictures=None,
        names=pretrained.names,
        wnids=pretrained.wnids,
        dataset=pretrained.dataset,
        trainings=(describe_pretrained(pretrained),),
        tensors=pretrained.tensors,
    )


def read_run(path: Path, *, source: str) -> Weights:
    """Reads the best checkpoint of a run, which `source` names; its data settings are valid in any working directory.

    Raises:
      UserError: it is not a workdir, or has no checkpoint.
    """
    trained, run = load_model(path), Workdir(path)
    return Weights(
        source=source,
        model=trained.config.model,
        side=trained.config.data.image_size,
        trained_on=run.read_data_config(),
        pictures=run.read_pictures(),
        names=trained.names,
        wnids=trained.wnids,
        dataset=trained.dataset,
        trainings=trainings(run, trained),
        tensors={name: np.asarray(leaf) for name, leaf in _by_path(trained.variables).items()},
    )


def mean_of(weights: Sequence[Weights]) -> Weights:
    """Returns the mean of the weights of several trainings of one network (Wortsman et al. 2022, "Model soups").

    It is often better than each of them if one started from another's weights, or all from the same.

    Args:
      weights: at least two. Everything but the tensors and trainings of the mean is taken from the first.

    Raises:
      UserError: two are of different networks or classes, of trainings that held out other pictures, or of the same
        training.
    """
    # They must be averageable, and differ.
    first, *others = weights
    for other in others:
        _check_averageable(first, other)
    for before, after in itertools.combinations(weights, 2):
        if after.trainings == before.trainings:
            raise UserError(f"{after.source} has weights of the same training as {before.source}; leave it out")
    # The lineage has every training once, in order, then the mean itself.
    every = [training for member in weights for training in member.trainings]
    merged = [training for index, training in enumerate(every) if training not in every[:index]]
    numbers = [str(number) for number in sorted(1 + merged.index(member.trainings[-1]) for member in weights)]
    recipe = {"weights": f"the mean of those at the end of the trainings {', '.join(numbers[:-1])} and {numbers[-1]}"}
    mean = Training(first.dataset, first.trainings[-1].license, recipe)
    tensors = {
        name: np.mean([member.tensors[name] for member in weights], axis=0, dtype=np.float32) for name in first.tensors
    }
    return replace(first, trainings=(*merged, mean), tensors=tensors)


def _check_averageable(first: Weights, other: Weights) -> None:
    """Raises UserError if the mean of two weights would be meaningless, or leak pictures held out of one training."""
    for difference, is_same in (
        (
            "of another network",
            all(getattr(other.model, name) == getattr(first.model, name) for name in (*SHAPE, "pooling")),
        ),
        ("for other classes", other.has_classes(first.names, first.wnids)),
        ("trained on pictures that were held out of its training", _has_same_split(first, other)),
    ):
        if not is_same:
            raise UserError(
                f"the weights of {other.source} are {difference} than the weights of {first.source}; leave them out"
            )


def _has_same_split(one: Weights, other: Weights) -> bool:
    # What others held out is not known.
    if one.trained_on is None or other.trained_on is None:
        return True
    # Files of earlier versions have no fingerprint.
    if one.pictures is None or other.pictures is None:
        return is_same_data(one.trained_on, other.trained_on)
    return one.pictures.has_same_split(other.pictures)


def write_weights(path: Path, variables: Variables, metadata: Metadata) -> None:
    """Writes parameters and batch statistics in half precision, as far as that loses nothing.

    Args:
      path: the file; it is replaced as a whole, or left as it was.
      variables: variables of the network.
      metadata: what the file says about them.

    Raises:
      OSError: the file cannot be written.
    """
    tensors = {name: _compact(np.asarray(leaf, order="C")) for name, leaf in _by_path(variables).items()}
    props = metadata.to_props()
    write_atomically(path, safetensors.numpy.save(tensors, props | {KEY: json.dumps(_checksum(tensors, props))}))


def _checksum(tensors: Mapping[str, np.ndarray], props: Mapping[str, str]) -> str:
    """Returns the checksum of all that a file holds."""
    described = {name: value for name, value in props.items() if name != KEY}
    return checksum_record({**described, "tensors": {name: checksum_array(array) for name, array in tensors.items()}})


def _compact(values: np.ndarray) -> np.ndarray:
    """Returns a kernel in float16 if no value changes by more than float16 would round the largest.

    A kernel that overflows float16, or lies wholly below its range, stays in float32. So do norms, biases and batch
    statistics: they are few, and the smallest of them matters as much as the largest.
    """
    if values.ndim < 2:
        return values
    # A value beyond float16's range becomes infinite, with an infinite error.
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    error, largest = np.abs(values - half.astype(np.float32)).max(), np.abs(values).max()
    return half if error <= largest * 2**-11 else values


def _check_checksum(path: Path, file: Any) -> None:
    """Raises UserError if a file differs from its checksum; files of earlier versions have none."""
    props = file.metadata() or {}
    if KEY not in props:
        return
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if props[KEY] != json.dumps(_checksum(tensors, props)):
        raise UserError(f"{path} is damaged: it differs from its checksum; export or download it again")


def _read_tensor(path: Path, file: Any, name: str) -> np.ndarray:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _DTYPES:
        raise not_ours(path, f"{name} is of type {dtype}, not {' or '.join(_DTYPES)}")
    values = np.asarray(file.get_tensor(name), np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} is damaged: {name} has values that are not finite; export or download it again")
    return values


def _by_path(variables: Variables) -> dict[str, Any]:
    """Returns the arrays of a tree by path, in its order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def _shape(array: Any) -> list[int] | str:
    return "absent" if array is None else list(array.shape)
