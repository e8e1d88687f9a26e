"""Weights in timm's or torchvision's layout on this machine: `.safetensors`, or PyTorch's `.pth`, `.pt` or `.bin`."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors

from jaxcnn.config import ModelConfig, ModelName
from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import imagenet
from jaxcnn.models.pretrained.formats import FORMATS, recognise
from jaxcnn.models.pretrained.pth import read_pth
from jaxcnn.models.pretrained.record import Origin, Pretrained
from jaxcnn.models.published import PUBLISHED
from jaxcnn.paths import named_path

SUFFIXES = (".pth", ".pt", ".bin")
"""How PyTorch's files end."""
SAFETENSORS = ".safetensors"
UNKNOWN = "unknown pictures"
"""The training data of weights that do not say."""
CONFIG = "config.json"
"""The file of timm beside the weights, which describes them."""
LOOKALIKES = ("resnetaa50", "resnetblur50", "tf_mobilenetv3_large_100", "tf_mobilenetv3_small_100")
"""Networks of timm with the tensors of ours that pool, pad or normalise in another way."""


def read_file(source: str) -> Pretrained | None:
    """Reads weights in timm's or torchvision's layout; None if `source` is no such file.

    timm's `config.json` in the same folder says how pictures are normalised and cropped. Without it the network's usual
    constants are used.

    Raises:
      UserError: the file cannot be read, or is of no network that jaxcnn has.
    """
    if not source.endswith((*SUFFIXES, SAFETENSORS)):
        return None
    path = named_path(source, option="init_from")
    if not path.is_file():
        return None
    tensors = read_safetensors(path) if path.suffix == SAFETENSORS else read_pth(path)
    if tensors is None:
        return None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return describe(tensors, path=path, origin=Origin(name=path.name, sha256=digest))


def describe(tensors: Mapping[str, np.ndarray], *, path: Path, origin: Origin) -> Pretrained:
    """Returns the record of the tensors of a file, with what the `config.json` beside it says.

    Raises:
      UserError: they are of no network that jaxcnn has, or too few or too many for it, have values that are not finite,
        or may be of two networks that normalise pictures differently; or the description is invalid.
    """
    config = _read_config(path.with_name(CONFIG))
    try:
        network, variables = recognise(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    damaged = next((name for name, values in variables.items() if not np.isfinite(values).all()), None)
    if damaged is not None:
        raise UserError(f"{path} is damaged: {damaged} has values that are not finite; download it again")
    _check_size(network, variables, path)
    architecture = str(config.get("architecture", ""))
    if architecture in LOOKALIKES:
        raise UserError(
            f"{path} is of {architecture}, which has the tensors of {network} but computes something else; take the "
            f"weights of {network}"
        )
    if network.startswith("vit_"):
        network = _vit_or_deit(network, path, architecture)
    try:
        return _describe(network, variables, config.get("pretrained_cfg", {}), origin)
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path.with_name(CONFIG)} has an invalid value ({error}); remove it") from error


def _check_size(network: ModelName, variables: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises UserError if weights are of a larger network of a family, which has the tensors of a smaller one, too."""
    kernel = variables.get("params/classifier/kernel")
    if kernel is None:
        return
    backbone = [name for name in variables if name.startswith("params/") and not name.startswith("params/classifier/")]
    found, expected = sum(variables[name].size for name in backbone), PUBLISHED[network].parameters
    expected -= 1000 * (len(kernel) + 1)
    if found != expected:
        raise UserError(
            f"{path} is of another network than {network}, which has {expected:,} numbers before its classifier, not "
            f"{found:,}; take the weights of a network that jaxcnn has"
        )


def _describe(
    network: ModelName, variables: Mapping[str, np.ndarray], published: Mapping[str, Any], origin: Origin
) -> Pretrained:
    """Returns the record; what timm does not say is as usual for the network."""
    usual, is_imagenet = PUBLISHED[network], "in1k" in str(published.get("tag", "")).split("_")
    names, wnids = imagenet.imagenet_classes() if is_imagenet else ((), ())
    has_its_classes = variables.get("params/classifier/bias", np.zeros(0)).size == len(names)
    return Pretrained(
        model=ModelConfig(
            name=network, pixel_mean=_pixels(published.get("mean")), pixel_std=_pixels(published.get("std"))
        ),
        tensors=variables,
        names=names if has_its_classes else (),
        wnids=wnids if has_its_classes else (),
        side=int(published.get("input_size", (3, usual.side))[1]),
        crop=float(published.get("crop_pct", usual.crop)),
        filter="bilinear" if published.get("interpolation") == "bilinear" else usual.filter,
        dataset=imagenet.NAME if is_imagenet else UNKNOWN,
        license=str(published.get("license") or ""),
        dataset_license=imagenet.TERMS if is_imagenet else "",
        origin=origin,
    )


def read_safetensors(path: Path) -> dict[str, np.ndarray] | None:
    """Reads the tensors of a file of PyTorch; None if it is another, or damaged, which is reported elsewhere."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = [*file.keys()]
            if (file.metadata() or {}).get("format") != "pt" and not any(form.tensor in names for form in FORMATS):
                return None
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError):
        return None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} has tensors of a type that NumPy lacks ({error}); save them as float32") from error


def _read_config(path: Path) -> dict[str, Any]:
    """Reads timm's description of weights; empty if the file is missing."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not timm's description of the weights ({error}); remove it") from error
    if not isinstance(config, dict) or not isinstance(config.get("pretrained_cfg", {}), dict):
        raise UserError(f"{path} is not timm's description of the weights; remove it")
    return config


def _vit_or_deit(network: ModelName, path: Path, architecture: str) -> ModelName:
    """Returns which of the two networks weights are of, which differ only in how they normalise pictures."""
    deit = network.replace("vit_", "deit_")
    name = architecture or path.name
    # A file may be called "gravity".
    if re.search("(?<![a-z])deit", name.lower()):
        return cast(ModelName, deit)
    if re.search("(?<![a-z])vit(?![a-z])", name.lower()):
        return network
    raise UserError(
        f"{path} may be of {network} or of {deit}, which normalise pictures differently; put one of the two into the "
        f"file's name, or timm's {CONFIG} beside it"
    )


def _pixels(numbers: Any) -> tuple[float, float, float] | None:
    """Returns a mean or deviation from 0 to 255, which timm gives from 0 to 1."""
    if numbers is None:
        return None
    red, green, blue = (round(255 * float(number), 4) for number in numbers)
    return red, green, blue
