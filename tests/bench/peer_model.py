"""What the peers of the server benchmark run: the same model file, session settings, requests and answers as jaxcnn."""

import base64
import io
import json
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image


class PeerModel:
    """A model file with two cores, and pictures in base64."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._names = json.loads(metadata["names"])
        self._height, self._width = json.loads(metadata["image_size"])

    def decode(self, image: str) -> np.ndarray:
        """Returns the pixels of a picture, uint8 [height, width, 3]."""
        picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
        return np.asarray(picture.resize((self._width, self._height), Image.Resampling.BICUBIC))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the probabilities of one picture."""
        return self._session.run(["probabilities"], {"image": pixels[None]})[0][0]

    def encode(self, probabilities: np.ndarray) -> dict[str, Any]:
        """Returns the three best classes, as /predict answers."""
        best = np.argsort(-probabilities)[:3]
        top = [{"class": self._names[i], "prob": float(probabilities[i])} for i in best]
        return {"predicted_class": top[0]["class"], "top_predictions": top}

    def answer(self, image: str) -> dict[str, Any]:
        """Returns the answer to a whole request."""
        return self.encode(self.run(self.decode(image)))
