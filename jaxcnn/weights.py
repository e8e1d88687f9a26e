"""Trained weights to start another run from: one safetensors file, written by `python -m export`, or a run's folder."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxcnn import models
from jaxcnn.config import SHAPE, DataConfig, ModelConfig
from jaxcnn.data import Fingerprint
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.leakage import is_same_data
from jaxcnn.metadata import Metadata
from jaxcnn.paths import named_path
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.lineage import Training, parse_trainings, trainings
from jaxcnn.run.workdir import Workdir
from jaxcnn.state import Variables

SUFFIX = ".safetensors"
SHIPPED = Path(__file__).parents[1] / "server" / "models" / f"tiny_imagenet{SUFFIX}"
"""Beside the server's model, in a checkout as in an installed package."""
_DTYPES = ("F16", "F32")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A trained network to start from.

    Attributes:
      source: where it was read from.
      model: its shape.
      trained_on: where its pictures came from.
      pictures: fingerprint of their split; None in a file that does not record it.
      names: of its classes.
      wnids: WordNet ids in the same order; empty where its data had none.
      dataset: the name of the data it was trained on.
      trainings: all that it has learnt in, the last one last.
      tensors: parameters and batch statistics by their paths, such as `params/classifier/kernel`; float32.
    """

    source: str
    model: ModelConfig
    trained_on: DataConfig
    pictures: Fingerprint | None
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    dataset: str
    trainings: tuple[Training, ...]
    tensors: Mapping[str, np.ndarray]

    def has_classes(self, names: tuple[str, ...], wnids: tuple[str, ...]) -> bool:
        """Whether these are its classes, in this order; by WordNet ids too where both have them."""
        return names == self.names and (wnids == self.wnids or not (wnids and self.wnids))

    def fill(self, variables: Variables, *, with_head: bool) -> Variables:
        """The variables of a network with these weights in their place, those of its head only if `with_head`.

        Raises:
          UserError: the network is another; the first parameter that differs is named.
        """
        here, there = _by_path(variables), self.tensors
        taken = [name for name in {**here, **there} if with_head or not {*name.split("/")} & {*models.HEAD}]
        for name in taken:
            expected, found = (list(each[name].shape) if name in each else "absent" for each in (here, there))
            if found != expected:
                raise UserError(
                    f"the weights of {self.source} do not fit the network: {name} is {found} there, {expected} here; "
                    "give the model's settings that they were trained with"
                )
        arrays = here | {name: there[name] for name in taken}
        filled: Variables = jax.tree.unflatten(jax.tree.structure(variables), arrays.values())
        return filled


def read_weights(source: str) -> Weights:
    """Reads what the setting `init_from` names.

    Raises:
      UserError: there is nothing such, or it is damaged.
    """
    path = _find(source)
    if path.is_dir():
        trained, run = load_model(path), Workdir(path)
        return Weights(
            source=source,
            model=trained.config.model,
            trained_on=run.read_data_config(),
            pictures=run.read_pictures(),
            names=trained.names,
            wnids=trained.wnids,
            dataset=trained.dataset,
            trainings=trainings(run, trained),
            tensors={name: np.asarray(leaf) for name, leaf in _by_path(trained.variables).items()},
        )
    with _opened(path) as file:
        facts = _metadata(path, file)
        config = facts.config()
        return Weights(
            source=source,
            model=config.model,
            trained_on=config.data,
            pictures=facts.pictures(),
            names=facts.texts("names"),
            wnids=facts.texts("wnids"),
            dataset=facts.read("dataset", str),
            trainings=_trainings(facts),
            tensors={name: _read_tensor(path, file, name) for name in file.keys()},  # noqa: SIM118
        )


def mean_of(weights: Sequence[Weights]) -> Weights:
    """The mean of the weights of several trainings of one network (Wortsman et al. 2022).

    It is often better than each of them, if one began with another's weights, or all with the same.

    Args:
      weights: at least two; all but the tensors and trainings are those of the first.

    Raises:
      UserError: they are of other networks or classes, other pictures were held out, or two are of one training.
    """
    first, *others = weights
    for each in others:
        for what, same in (
            ("of another network", all(getattr(each.model, name) == getattr(first.model, name) for name in SHAPE)),
            ("for other classes", each.has_classes(first.names, first.wnids)),
            ("trained on pictures that were held out of its training", _holds_out_the_same(first, each)),
        ):
            if not same:
                raise UserError(f"the weights of {each.source} are {what} than those of {first.source}; leave them out")
    for before, each in itertools.combinations(weights, 2):
        if each.trainings == before.trainings:
            raise UserError(f"{each.source} has weights of the same training as {before.source}; leave it out")
    trainings = [training for each in weights for training in each.trainings]
    merged = [training for index, training in enumerate(trainings) if training not in trainings[:index]]
    ends = [str(end) for end in sorted(1 + merged.index(each.trainings[-1]) for each in weights)]
    told = {"weights": f"the mean of those at the end of the trainings {', '.join(ends[:-1])} and {ends[-1]}"}
    mean = Training(first.dataset, first.trainings[-1].license, told)
    tensors = {
        name: np.mean([each.tensors[name] for each in weights], axis=0, dtype=np.float32) for name in first.tensors
    }
    return replace(first, trainings=(*merged, mean), tensors=tensors)


def _holds_out_the_same(one: Weights, other: Weights) -> bool:
    if one.pictures is None or other.pictures is None:  # of older files
        return is_same_data(one.trained_on, other.trained_on)
    return one.pictures.has_same_split(other.pictures)


def read_model(source: str) -> ModelConfig:
    """The shape of the network that the setting `init_from` names, without its weights.

    Raises:
      UserError: as `read_weights`.
    """
    path = _find(source)
    if path.is_dir():
        return Workdir(path).read_config().model
    with _opened(path) as file:
        return _metadata(path, file).config().model


def write_weights(path: Path, variables: Variables, facts: Mapping[str, Any]) -> None:
    """Writes parameters and batch statistics in half precision, as far as that loses nothing.

    Args:
      path: the file; it is whole, or as it was before.
      variables: of the network.
      facts: the metadata, written as JSON: `config`, `names`, `wnids`, `dataset`, `trainings` and what else there is to
        say.

    Raises:
      OSError: the file cannot be written.
    """
    tensors = {name: _compact(np.asarray(leaf, order="C")) for name, leaf in _by_path(variables).items()}
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
    write_atomically(path, safetensors.numpy.save(tensors, metadata))


def _compact(values: np.ndarray) -> np.ndarray:
    """A kernel in float16, if the error of each value is at most float16's rounding of the largest.

    So one that overflows, or lies wholly below float16's range, stays in float32. So do norms, biases and batch
    statistics: they are few, and the smallest of them matters as much as the largest.
    """
    if values.ndim < 2:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    error, largest = np.abs(values - half.astype(np.float32)).max(), np.abs(values).max()
    return half if error <= largest * 2**-11 else values


def _find(source: str) -> Path:
    if source == "shipped":
        if not SHIPPED.is_file():
            raise UserError(
                f"init_from is 'shipped', but {SHIPPED} is not there; give a {SUFFIX} file or the workdir of a run"
            )
        return SHIPPED
    if not source:
        raise UserError(f"init_from is empty; give 'shipped', a {SUFFIX} file or the workdir of a run")
    path = named_path(source, option="init_from")
    if not path.exists():
        raise UserError(
            f"init_from is {source!r}, which does not exist; give 'shipped', a {SUFFIX} file or the workdir of a run"
        )
    if not path.is_dir() and path.suffix != SUFFIX:
        raise UserError(
            f"init_from is {source!r}, which does not end with {SUFFIX}; `python -m export WORKDIR -o NAME{SUFFIX}` "
            "writes such a file"
        )
    return path


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a {SUFFIX} file ({reason}); export or download it again") from error


def _metadata(path: Path, file: Any) -> Metadata:
    return Metadata(path, file.metadata() or {}, f"python -m export WORKDIR -o NAME{SUFFIX}")


def _trainings(facts: Metadata) -> tuple[Training, ...]:
    try:
        return parse_trainings(facts.read("trainings", list))
    except ValueError as error:
        raise facts.refusal(f"its metadata has {error}") from None


def _read_tensor(path: Path, file: Any, name: str) -> np.ndarray:
    dtype = file.get_slice(name).get_dtype()
    if dtype not in _DTYPES:
        raise _metadata(path, file).refusal(f"{name} is of type {dtype}, not {' or '.join(_DTYPES)}")
    values = np.asarray(file.get_tensor(name), np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{path} is damaged: {name} has values that are not finite; export or download it again")
    return values


def _by_path(variables: Variables) -> dict[str, Any]:
    """The arrays of a tree, in its order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
