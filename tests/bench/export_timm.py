"""Writes a network of timm or efficientnet-lite-pytorch with PyTorch's exporter, and its random weights.

Runs in an environment with torch: `python tests/bench/export_timm.py FOLDER/NAME vit_tiny_patch16_224` writes
FOLDER/NAME.torch.onnx, from uint8 pictures [batch, 224, 224, 3] to logits, and FOLDER/NAME.pth.
"""

import sys

import torch
from torch import nn

SIDE = 224


class FromPixels(nn.Module):
    """Normalises pixels, then runs the network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network((image.to(torch.float32).permute(0, 3, 1, 2) - 127.5) / 127.5)


def make(name):
    if name.startswith("efficientnet-lite"):
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(name)
    import timm

    return timm.create_model(name)


def main(path, name):
    torch.manual_seed(0)
    network = make(name).eval()
    torch.save(network.state_dict(), f"{path}.pth")
    image = torch.zeros((2, SIDE, SIDE, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        FromPixels(network).eval(),
        (image,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    program.save(f"{path}.torch.onnx")


main(sys.argv[1], sys.argv[2])
