"""The metadata of an exported file: what a model is, in text by key, for whoever opens the file without this library.

ONNX files have it as `metadata_props`, safetensors files as `__metadata__`. Each value is JSON.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from jaxcnn.calibration import Calibration
from jaxcnn.config import Config
from jaxcnn.data import Fingerprint, Resize
from jaxcnn.data.resize import STRETCH
from jaxcnn.errors import UserError
from jaxcnn.run.earlier_trainings import Training
from jaxcnn.typed_json import decode

OPTIONAL = ("step", "pictures", "calibration", "quantization", "views")
"""Keys that are left out where there is nothing to say."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What an exported file says about its model. The fields are its keys.

    Attributes:
      names: class names, in the order of the outputs.
      wnids: WordNet ids in the same order; empty if the data had none.
      image_size: height and width of the input in pixels.
      resize: how a picture becomes the input.
      dataset: name of the training data.
      metrics: metrics on the validation pictures by name; empty if they are unknown.
      step: training steps taken; None in files of earlier versions.
      config: settings of the training, without the paths of the machine it ran on.
      pictures: fingerprint of the split; None in files of earlier versions.
      calibration: the temperature that the logits are divided by; None if they are not calibrated.
      quantization: comparison with the float32 model, by name; None for a float32 model.
      views: 2 if the probabilities are the mean of those for a picture and for its mirror image, None if not.
      license: terms of the training data.
      trainings: every training behind the weights, from the first to the last.
      author: what wrote the file.
      version: version of the author.
      date: when the file was written, in ISO 8601.
      description: one sentence.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    image_size: tuple[int, int]
    resize: Resize = STRETCH
    dataset: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    step: int | None = None
    config: Config
    pictures: Fingerprint | None = None
    calibration: Calibration | None = None
    quantization: Mapping[str, Any] | None = None
    views: int | None = None
    license: str = ""
    trainings: tuple[Training, ...] = ()
    author: str = ""
    version: str = ""
    date: str = ""
    description: str = ""

    def to_values(self) -> dict[str, Any]:
        """Returns the metadata as JSON values by key."""
        values = dataclasses.asdict(self)
        # Only crops have a side; files of earlier versions have no such key.
        values["resize"] = {key: value for key, value in values["resize"].items() if value is not None}
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}

    def to_props(self) -> dict[str, str]:
        """Returns the metadata as JSON text by key, as a file has it."""
        return {key: json.dumps(value) for key, value in self.to_values().items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], *, required: Collection[str] = ()) -> "Metadata":
        """Reads the metadata of a file. It is validated strictly: the file may be untrusted.

        Args:
          props: JSON text by key. Keys that are not fields are ignored.
          required: keys without which the file is refused, though the fields have defaults: files of earlier versions
            and of other programs may lack some.

        Raises:
          UserError: a key is missing, or its value is not JSON or not of the type of its field.
        """
        # Unknown keys may come from other tools, or later versions.
        values = {field.name: _parse(field.name, props) for field in dataclasses.fields(cls) if field.name in props}
        metadata = decode(cls, values, "metadata")
        for key in required:
            if key not in values:
                raise UserError(f"metadata.{key} is missing")
        return metadata


def _parse(key: str, props: Mapping[str, str]) -> Any:
    try:
        return json.loads(props[key])
    except (ValueError, RecursionError):
        raise UserError(f"metadata.{key} is not JSON") from None
