"""LitServe with the same model file.

`PYTHON tests/bench/peer_litserve.py PORT MODEL`, with an interpreter that has litserve, onnxruntime and Pillow.
"""

import sys
from typing import Any

import litserve
import numpy as np
from peer_model import PeerModel, read_setting


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = PeerModel(sys.argv[2])

    def decode_request(self, request, **options: Any) -> np.ndarray:  # An annotation would change what LitServe passes.
        return self.model.decode(request["image"])

    def predict(self, images: np.ndarray, **options: Any) -> np.ndarray:
        # Without batches LitServe passes one picture.
        return self.model.run(images) if images.ndim == 4 else self.model.run(images[None])[0]

    def encode_response(self, output: np.ndarray, **options: Any):
        return self.model.encode(output)


if __name__ == "__main__":
    setting = read_setting()
    api = Classifier(max_batch_size=setting.batch, batch_timeout=setting.wait_ms / 1000)
    # LitServe's documentation advises `fast_queue` for hundreds of requests per second.
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=setting.workers, fast_queue=True)
    server.run(port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False)
