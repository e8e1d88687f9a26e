"""BentoML with the same model file.

`PYTHON -m bentoml serve --working-dir tests/bench peer_bentoml:Classifier --port PORT`, with an interpreter that has
bentoml, onnxruntime and Pillow. The variable JAXCNN_MODEL names the model file.
"""

import os
from typing import Annotated, Any

import bentoml
from peer_model import PeerModel, read_setting
from pydantic import BeforeValidator

setting = read_setting()
Images = Annotated[list[str], BeforeValidator(lambda image: [image])]
"""What BentoML makes batches of is a list: here of the one picture of a request."""


# Two runs at once, in one process or in two.
@bentoml.service(workers=setting.workers, threads=2 // setting.workers, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.model = PeerModel(os.environ["JAXCNN_MODEL"])

    # BentoML takes no largest batch of 1.
    @bentoml.api(batchable=setting.batch > 1, max_batch_size=max(2, setting.batch))
    def predict(self, image: Images) -> list[dict[str, Any]]:
        return self.model.answer(image)
