"""What the peers of the server benchmark run: the same model file, pictures and answers as jaxcnn."""

import base64
import io
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image


@dataclass(frozen=True)
class Setting:
    """How a peer uses two cores."""

    workers: int
    """Processes that run the model."""
    threads: int
    """Threads of onnxruntime in each run."""
    batch: int = 1
    """Most pictures in a run."""
    wait_ms: float = 0
    """Longest time for which a batch waits for requests; BentoML finds one itself."""

    def __str__(self) -> str:
        batches = f"batches of {self.batch}" if self.batch > 1 else "no batches"
        window = f" in {self.wait_ms:g} ms" if self.wait_ms else ""
        return f"workers: {self.workers}, threads: {self.threads}, {batches}{window}"


def read_setting() -> Setting:
    """Returns the setting that the benchmark asks for in the variable PEER_SETTING."""
    return Setting(**json.loads(os.environ["PEER_SETTING"]))


class PeerModel:
    """A model file, and pictures in base64."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = read_setting().threads
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
        """Returns the probabilities [n, classes] of pictures, uint8 [n, height, width, 3]."""
        return self._session.run(["probabilities"], {"image": pixels})[0]

    def encode(self, probabilities: np.ndarray) -> dict[str, Any]:
        """Returns the three best classes of a picture, as /predict answers."""
        best = np.argsort(-probabilities)[:3]
        top = [{"class": self._names[i], "prob": float(probabilities[i])} for i in best]
        return {"predicted_class": top[0]["class"], "top_predictions": top}

    def answer(self, images: list[str]) -> list[dict[str, Any]]:
        """Returns the answers to whole requests."""
        return [self.encode(row) for row in self.run(np.stack([self.decode(image) for image in images]))]
