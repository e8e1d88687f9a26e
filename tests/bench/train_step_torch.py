"""PyTorch's step for `tests.bench.train_step`."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from jaxcnn.config import ModelConfig
from jaxcnn.ops.allocator import keep_freed_memory


def conv_norm_act(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """A convolution of the original network."""
    return [
        nn.Conv2d(inputs, outputs, kernel, padding="same"),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        nn.LeakyReLU(0.3, inplace=True),
    ]


class Seed(nn.Module):
    """The original network."""

    def __init__(self, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(4):
            layers += conv_norm_act(channels, 32, 2)
            channels = 32
        layers.append(nn.AvgPool2d(2))
        for width in (64, 128):
            layers += [nn.Dropout2d(0.1), *conv_norm_act(channels, width, 3)]
            for _ in range(2):
                layers += [nn.Conv2d(width, width // 2, 1), *conv_norm_act(width // 2, width, 3)]
                layers += conv_norm_act(width, width, 1)
            layers.append(nn.AvgPool2d(2))
            channels = width
        self.body = nn.Sequential(*layers)
        head: list[nn.Module] = []
        for width, dropout in ((600, 0.35), (400, 0.2)):
            head += [nn.Linear(channels, width), nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)]
            head += [nn.LeakyReLU(0.3, inplace=True), nn.Dropout(dropout)]
            channels = width
        self.head = nn.Sequential(*head, nn.Linear(channels, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions and their residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_0 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_0 = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm_0(self.conv_0(x)), inplace=True)
        return functional.relu(x + self.norm_1(self.conv_1(y)), inplace=True)


class ResNet(nn.Module):
    """The residual network of the presets."""

    def __init__(self, classes: int, widths: tuple[int, ...], blocks: tuple[int, ...], stem: int):
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(stem)]
        channels = 3 * stem**2
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if i:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True), *(Block(width) for _ in range(count))]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def build(model: ModelConfig, *, resolution: int, classes: int) -> nn.Module:
    """The peer of a network: written here, or from torchvision or timm."""
    if model.name == "seed":
        return Seed(classes)
    if model.name == "resnet":
        return ResNet(classes, model.widths, model.blocks, model.stem)
    if model.name.startswith(("resnet", "mobilenet")):
        import torchvision

        network: nn.Module = torchvision.models.get_model(model.name, num_classes=classes)
        return network
    import timm

    if model.name.startswith(("vit", "deit")):
        network = timm.create_model(f"{model.name}_patch16_224", num_classes=classes, img_size=resolution)
    else:
        network = timm.create_model(model.name, num_classes=classes, drop_rate=0.2)
    return network


def make_step(
    model: ModelConfig, *, batch: int, resolution: int, classes: int, bf16: bool, compiled: bool
) -> Callable[[], None]:
    """Forward, backward and a step of SGD with Nesterov's momentum, or of Adam for the original network.

    The process keeps freed memory as jaxcnn's does, in place of the allocators that PyTorch's tuning guide recommends.
    Otherwise the original network takes 1.6 times as long.
    """
    keep_freed_memory()
    network = build(model, resolution=resolution, classes=classes).to(memory_format=torch.channels_last).train()
    if model.name == "seed":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )
    pictures = torch.randn(batch, 3, resolution, resolution).to(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = network(pictures)
        return functional.cross_entropy(logits.float(), labels)

    compute_loss = torch.compile(loss) if compiled else loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compute_loss().backward()
        optimizer.step()

    return step
