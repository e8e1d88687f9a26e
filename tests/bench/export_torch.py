"""Writes the benchmark's networks with PyTorch's exporter: `python tests/bench/export_torch.py FOLDER`."""

import sys
from pathlib import Path

import torch
from torch import nn

SIDE, CLASSES = 64, 200
WIDTHS = (32, 64, 128)
BLOCKS = 2
EXPANSION, REDUCTION = 4, 4


def conv(inputs, outputs, size, stride=1, groups=1, activation=None):
    layers = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Basic(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride, activation=nn.ReLU), conv(outputs, outputs, 3))
        self.skip = conv(inputs, outputs, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.skip(x) + self.body(x))


class Excite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // REDUCTION, 1),
            nn.SiLU(),
            nn.Conv2d(channels // REDUCTION, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.gate(x)


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = inputs * EXPANSION
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            conv(inputs, wide, 1, activation=nn.SiLU),
            conv(wide, wide, 3, stride, groups=wide, activation=nn.SiLU),
            Excite(wide),
            conv(wide, outputs, 1),
        )

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


class Network(nn.Module):
    def __init__(self, block, stem):
        super().__init__()
        layers, width = [stem], WIDTHS[0]
        for i, outputs in enumerate(WIDTHS):
            for j in range(BLOCKS):
                layers.append(block(width, outputs, 2 if i and not j else 1))
                width = outputs
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))

    def forward(self, image):
        return self.body((image.to(torch.float32).permute(0, 3, 1, 2) - 118) / 64)


NETWORKS = {
    "resnet": lambda: Network(Basic, conv(3, WIDTHS[0], 3, activation=nn.ReLU)),
    "mbconv": lambda: Network(Inverted, conv(3, WIDTHS[0], 3, 2, activation=nn.SiLU)),
}


def main(folder: Path) -> None:
    for name, make in NETWORKS.items():
        image = torch.zeros((2, SIDE, SIDE, 3), dtype=torch.uint8)
        program = torch.onnx.export(
            make().eval(), (image,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
        program.save(str(folder / f"{name}.torch.onnx"))


main(Path(sys.argv[1]))
