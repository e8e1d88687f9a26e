"""Exports weights that others trained, as they are: a classifier without any training here."""

from datetime import UTC, datetime
from pathlib import Path

import jax

from export.workdir import Quantization, Source, export_model, find_target, save_weights
from jaxcnn.config import Config
from jaxcnn.data import Resize
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.models import registry
from jaxcnn.models.pretrained import Pretrained
from jaxcnn.models.pretrained.hub import PREFIX
from jaxcnn.run.checkpoint import TrainedModel
from jaxcnn.run.lineage import describe_pretrained
from jaxcnn.state import init_variables
from jaxcnn.version import __version__
from jaxcnn.weights import weights_of


def export_pretrained(
    name: str,
    pretrained: Pretrained,
    output: Path | None = None,
    *,
    features: bool = False,
    heatmap: bool = False,
    quantization: Quantization | None = None,
) -> Path:
    """Writes weights that others trained as a verified ONNX file; see `export_workdir`, which this is like.

    Args:
      name: what the weights are called, such as `efficientnet_lite0` or `timm:resnet50.a1_in1k`.
      pretrained: the weights.
      output: the file. None: NAME.onnx in the working directory, or NAME.int8.onnx if quantized, without the `timm:` of
        a name.
      features: add the output `features`.
      heatmap: add the output `heatmap`.
      quantization: quantize the model to 8-bit integers. None: float32.

    Returns:
      The path of the file.

    Raises:
      UserError: the classes of the weights are not known, or as `export_workdir`.
      UnsupportedError: as `export_workdir`.
      VerificationError: as `export_workdir`.
    """
    _check_classes(name, pretrained)
    target = find_target(output, default=Path(f"{name.removeprefix(PREFIX)}.onnx"), quantized=quantization is not None)
    metadata = describe(name, pretrained)
    source = Source(trained=_as_trained(name, pretrained, metadata), metadata=metadata)
    return export_model(source, target, features=features, heatmap=heatmap, quantization=quantization)


def export_pretrained_weights(name: str, pretrained: Pretrained, output: Path) -> Path:
    """Writes weights that others trained as a safetensors file, for runs to start from; see `jaxcnn.weights`.

    Raises:
      UserError: the classes of the weights are not known, or the file cannot be written.
    """
    _check_classes(name, pretrained)
    metadata = describe(name, pretrained)
    return save_weights(output, _as_trained(name, pretrained, metadata).variables, metadata)


def describe(name: str, pretrained: Pretrained) -> Metadata:
    """Returns the metadata of a file with these weights. Accuracy is called published, as it was not measured here."""
    classes, side, dataset = len(pretrained.names), pretrained.side, pretrained.dataset
    training = describe_pretrained(pretrained)
    return Metadata(
        names=pretrained.names,
        wnids=pretrained.wnids,
        image_size=(side, side),
        resize=Resize.of(pretrained.data_config),
        dataset=dataset,
        metrics={} if pretrained.top1 is None else {"published_top1": pretrained.top1},
        config=Config(data=pretrained.data_config, model=pretrained.model, init_from=name),
        license=training.license,
        trainings=(training,),
        author="jaxcnn",
        version=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        description=f"{pretrained.model.name} classifier of {classes:,} classes, trained by others on {dataset}",
    )


def _check_classes(name: str, pretrained: Pretrained) -> None:
    """Raises UserError if a file with these weights could not say what it predicts."""
    if not pretrained.names:
        raise UserError(
            f"the classes of {name} are not known, so its file could not name them; fine-tune the weights first"
        )


def _as_trained(name: str, pretrained: Pretrained, metadata: Metadata) -> TrainedModel:
    model = registry.build_here(pretrained.model, classes=len(pretrained.names))
    shapes = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=pretrained.side), jax.random.key(0))
    return TrainedModel(
        config=metadata.config,
        names=pretrained.names,
        wnids=pretrained.wnids,
        dataset=pretrained.dataset,
        license=metadata.license,
        model=model,
        variables=weights_of(pretrained, source=name).fill(shapes, with_head=True),
        step=0,
        metrics={},
        calibration=None,
    )
