"""BentoML with the same model file and session settings, configured for two cores.

`PYTHON -m bentoml serve --working-dir tests/bench peer_bentoml:Classifier --port PORT`, with an interpreter that has
bentoml, onnxruntime and Pillow. The variable JAXCNN_MODEL names the model file.
"""

import os
from typing import Any

import bentoml
from peer_model import PeerModel


@bentoml.service(threads=2, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.model = PeerModel(os.environ["JAXCNN_MODEL"])

    @bentoml.api
    def predict(self, image: str) -> dict[str, Any]:
        return self.model.answer(image)
