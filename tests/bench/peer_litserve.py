"""LitServe with the same model file and session settings, configured for two cores.

`PYTHON tests/bench/peer_litserve.py PORT MODEL`, with an interpreter that has litserve, onnxruntime and Pillow.
"""

import sys
from typing import Any

import litserve
import numpy as np
from peer_model import PeerModel


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = PeerModel(sys.argv[2])

    def decode_request(self, request, **options: Any) -> np.ndarray:  # An annotation would change what LitServe passes.
        return self.model.decode(request["image"])

    def predict(self, image: np.ndarray, **options: Any) -> np.ndarray:
        return self.model.run(image)

    def encode_response(self, output: np.ndarray, **options: Any):
        return self.model.encode(output)


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=2)
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False)
