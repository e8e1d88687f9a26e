"""Teachers: trained classifiers whose predictions a network learns beside the labels (Hinton et al. 2015).

They see the very pictures of each step, changed and mixed as the network sees them (Beyer et al. 2021), at the side
that they were trained for. Random resized crops show objects larger, as the teachers' own training did, so networks do
not enlarge them once more, as they do pictures in evaluation (Touvron et al. 2019). The mean of their probabilities is
the target.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxcnn.augment import augment
from jaxcnn.config import Config, DataConfig, DistillConfig
from jaxcnn.data import Dataset, Fingerprint
from jaxcnn.distributed import make_mesh, place_state
from jaxcnn.errors import UserError
from jaxcnn.leakage import check_no_leakage
from jaxcnn.metadata import Metadata
from jaxcnn.models import registry
from jaxcnn.onnx_file import OnnxModel, not_exported, open_model
from jaxcnn.ops.compiler import jit
from jaxcnn.ops.dispatch import cpu_kernels_available, use_cpu_kernels
from jaxcnn.paths import named_path
from jaxcnn.processes import is_leader
from jaxcnn.run.earlier_trainings import Training
from jaxcnn.state import Variables, describe_variables
from jaxcnn.step import step_keys
from jaxcnn.terminal import warn
from jaxcnn.weights import Weights, read_same_weights

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class Teachers:
    """Trained classifiers, ready to predict.

    Attributes:
      networks: networks of JAX.
      sides: side in pixels of the pictures that each network was trained for.
      variables: the variables of each network.
      files: exported models.
      calibrations: the temperature that the logits of each file are divided by already.
      trainings: every training behind the teachers.
      temperature: divides their logits before any calibration.
      cpu_kernels: whether pictures are changed with CPU kernels, as in the step.
    """

    networks: tuple[nn.Module, ...]
    sides: tuple[int, ...]
    variables: tuple[Variables, ...]
    files: tuple[OnnxModel, ...]
    calibrations: tuple[float, ...]
    trainings: tuple[Training, ...]
    temperature: float
    cpu_kernels: bool

    def predict(
        self,
        step: Int[Array, ""],
        images: UInt8[Array | np.ndarray, "batch side side 3"],
        labels: Int[Array | np.ndarray, " batch"],
        key: Key[Array, ""],
        **changes: Any,
    ) -> Float[Array, "batch classes"]:
        """Returns the mean of the teachers' probabilities for the pictures of a step, as the step changes them.

        Args:
          step: the number of the step, from which its augmentation follows.
          images: RGB pictures.
          labels: their classes.
          key: the run's key.
          changes: `config`, `classes`, `resolution` and `shown` of `jaxcnn.augment.augment`.
        """
        summands = []
        changes |= {"cpu_kernels": self.cpu_kernels}
        if self.networks:
            summands.append(
                _add_probabilities(
                    self.variables,
                    step,
                    images,
                    labels,
                    key,
                    networks=self.networks,
                    sides=self.sides,
                    temperature=self.temperature,
                    **changes,
                )
            )
        for file, calibration in zip(self.files, self.calibrations, strict=True):
            pictures = np.asarray(_changed_pictures(step, images, labels, key, side=file.side, **changes))
            (logits,) = file.run(pictures, ["logits"])
            summands.append(jax.nn.softmax(jnp.asarray(logits) * (calibration / self.temperature)))
        mean: Float[Array, "batch classes"] = sum(summands[1:], summands[0]) / (len(self.networks) + len(self.files))
        return mean


@partial(
    jit,
    static_argnames=("networks", "sides", "temperature", "cpu_kernels", "config", "classes", "resolution", "shown"),
)
def _add_probabilities(
    variables: tuple[Variables, ...],
    step: Int[Array, ""],
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    networks: tuple[nn.Module, ...],
    sides: tuple[int, ...],
    temperature: float,
    cpu_kernels: bool,
    **changes: Any,
) -> Float[Array, "batch classes"]:
    """The sum of the networks' probabilities for the pictures of a step."""
    augment_key, _ = step_keys(key, step)
    with use_cpu_kernels(cpu_kernels):
        pictures, _ = augment(augment_key, images, labels, **changes)
    total = jnp.zeros((len(pictures), changes["classes"]))
    for network, values, side in zip(networks, variables, sides, strict=True):
        logits = network.apply(values, _resized(pictures, side), train=False)
        assert isinstance(logits, jax.Array)
        total += jax.nn.softmax(logits / temperature)
    return total


@partial(jit, static_argnames=("side", "cpu_kernels", "config", "classes", "resolution", "shown"))
def _changed_pictures(
    step: Int[Array, ""],
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    side: int,
    cpu_kernels: bool,
    **changes: Any,
) -> UInt8[Array, "batch {side} {side} 3"]:
    """The pictures of a step, in the size and type that an exported model takes."""
    augment_key, _ = step_keys(key, step)
    with use_cpu_kernels(cpu_kernels):
        pictures, _ = augment(augment_key, images, labels, **changes)
    return jnp.round(jnp.clip(_resized(pictures, side), 0, 255)).astype(jnp.uint8)


def _resized(pictures: Float[Array, "batch rows columns 3"], side: int) -> Float[Array, "batch {side} {side} 3"]:
    resized: Float[Array, "batch {side} {side} 3"] = jax.image.resize(
        pictures, (len(pictures), side, side, 3), "linear"
    )
    return resized


def check_teachers(config: DistillConfig) -> None:
    """Raises a `UserError` if a teacher does not exist; reads none of them."""
    for name in config.teachers:
        _find(name)


def read_teachers(config: Config, dataset: Dataset) -> Teachers | None:
    """Reads the teachers that the settings name; None if they name none.

    Raises:
      UserError: a teacher does not exist or is damaged, has other classes than the data, or was trained on pictures
        that the run holds out.
    """
    settings = config.distill
    if not settings.teachers:
        return None
    paths = [_find(name) for name in settings.teachers]
    files = [open_model(path) for path in paths if path.suffix == ONNX_SUFFIX]
    if files and jax.device_count() > 1:
        raise UserError(
            f"{files[0].path} cannot teach on {jax.device_count()} devices; give the workdir that it was exported from"
        )
    described = [_describe_file(file) for file in files]
    weights = [read_same_weights(str(path)) for path in paths if path.suffix != ONNX_SUFFIX]
    sources: list[Weights | _Described] = [*described, *weights]
    for source in sources:
        _check_fits(source, config, dataset)
    cropped = config.augment.crop_scale is not None
    networks = [
        registry.build_here(
            # As each was trained, in the arithmetic of this run.
            dataclasses.replace(
                source.model,
                inference_side=None if cropped else source.model.inference_side,
                precision=config.model.precision,
                cpu_kernels=config.model.cpu_kernels,
            ),
            classes=len(source.names),
        )
        for source in weights
    ]
    mesh = make_mesh(config.parallel.fsdp)
    variables = [
        place_state(source.fill(describe_variables(network, source.side), with_head=True), mesh)
        for source, network in zip(weights, networks, strict=True)
    ]
    return Teachers(
        networks=tuple(networks),
        sides=tuple(source.side for source in weights),
        variables=tuple(variables),
        files=tuple(files),
        calibrations=tuple(source.calibration for source in described),
        trainings=tuple(training for source in sources for training in source.trainings),
        temperature=settings.temperature,
        cpu_kernels=config.model.cpu_kernels and cpu_kernels_available(),
    )


class _Described(NamedTuple):
    """What an exported model says about itself, under the names of `Weights`, and how it is calibrated."""

    source: str
    trained_on: DataConfig
    pictures: Fingerprint | None
    names: tuple[str, ...]
    wnids: tuple[str, ...]
    trainings: tuple[Training, ...]
    calibration: float


def _find(name: str) -> Path:
    """Returns the path of a teacher, which exists."""
    path = named_path(name, option="distill.teachers")
    if not path.exists():
        raise UserError(
            f"distill.teachers names {name!r}, which does not exist; give workdirs, .safetensors files or .onnx files"
        )
    return path


def _describe_file(file: OnnxModel) -> _Described:
    try:
        metadata = Metadata.from_props(file.session.get_modelmeta().custom_metadata_map)
    except UserError as error:
        raise not_exported(file.path, error) from None
    return _Described(
        source=str(file.path),
        trained_on=metadata.config.data,
        pictures=metadata.pictures,
        names=metadata.names,
        wnids=metadata.wnids,
        trainings=metadata.trainings,
        calibration=1.0 if metadata.calibration is None else metadata.calibration.temperature,
    )


def _check_fits(source: Weights | _Described, config: Config, dataset: Dataset) -> None:
    """Raises UserError if a teacher has other classes, or was trained on pictures that the run holds out."""
    same_ids = source.wnids == dataset.wnids or not (source.wnids and dataset.wnids)
    if source.names != dataset.names or not same_ids:
        raise UserError(
            f"distill.teachers names {source.source}, which has other classes than {dataset.name}, or the same in "
            "another order; leave it out"
        )
    if source.trained_on is not None:
        warning = check_no_leakage(dataset, config.data, trained_on=source.trained_on, fingerprint=source.pictures)
        if warning and is_leader():
            warn(f"{source.source}: {warning}")
