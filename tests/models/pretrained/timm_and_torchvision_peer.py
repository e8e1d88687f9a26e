"""Writes random weights of a network of timm or torchvision, and the logits that they give.

Runs in an environment with torch: `python timm_and_torchvision_peer.py FOLDER timm/convnext_atto`. Reads
FOLDER/images.npy, normalised float32 pictures [batch, side, side, 3], and writes FOLDER/weights.pth and logits.npy.
"""

import sys
from pathlib import Path

import numpy as np
import torch

CLASSES = 10


def make(name: str) -> torch.nn.Module:
    package, _, network = name.partition("/")
    if package == "timm":
        import timm

        return timm.create_model(network, num_classes=CLASSES)
    import torchvision

    return torchvision.models.get_model(network, num_classes=CLASSES)


def randomise(model: torch.nn.Module) -> None:
    """Makes every array count: norms and layer scales near one, biases and statistics that are neither zero nor one."""
    for name, array in (*model.named_parameters(), *model.named_buffers()):
        if not array.is_floating_point():
            continue
        if array.ndim > 1 and not name.startswith(("cls_token", "pos_embed")):
            fan_in = array[0].numel()
            torch.nn.init.normal_(array, std=fan_in**-0.5)
        elif name.endswith(("weight", "gamma", "running_var")):
            torch.nn.init.uniform_(array, 0.5, 1.5)
        else:
            torch.nn.init.normal_(array, std=0.2)


def main(folder: Path, name: str) -> None:
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    model = make(name).eval()
    with torch.no_grad():
        randomise(model)
        torch.save(model.state_dict(), folder / "weights.pth")
        np.save(folder / "logits.npy", model(images).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
