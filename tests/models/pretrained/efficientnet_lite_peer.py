"""Computes the logits of EfficientNet-Lite in its original implementation, the package `efficientnet-lite-pytorch`.

Runs in an environment with torch: `python efficientnet_lite_peer.py efficientnet_lite0 WEIGHTS.pth FOLDER`. Reads
FOLDER/images.npy, uint8 [batch, side, side, 3], and writes FOLDER/logits.npy.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet


def main(name: str, weights: str, folder: Path) -> None:
    model = EfficientNet.from_name(name.replace("_", "-"))
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    images = (np.load(folder / "images.npy").astype(np.float32) - 127) / 128
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    np.save(folder / "logits.npy", logits.numpy())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
