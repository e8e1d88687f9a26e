"""LitServe with the same model file and session settings, configured for two cores.

`PYTHON tests/bench/peer_litserve.py PORT MODEL`, with an interpreter that has litserve, onnxruntime and Pillow.
"""

import base64
import io
import json
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort
from PIL import Image


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.names = json.loads(metadata["names"])
        self.height, self.width = json.loads(metadata["image_size"])

    def decode_request(self, request, **options: Any) -> np.ndarray:  # An annotation would change what LitServe passes.
        picture = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        return np.asarray(picture.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def predict(self, image: np.ndarray, **options: Any) -> np.ndarray:
        return self.session.run(["probabilities"], {"image": image[None]})[0][0]

    def encode_response(self, output: np.ndarray, **options: Any):
        best = np.argsort(-output)[:3]
        top = [{"class": self.names[i], "prob": float(output[i])} for i in best]
        return {"predicted_class": top[0]["class"], "top_predictions": top}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False)
