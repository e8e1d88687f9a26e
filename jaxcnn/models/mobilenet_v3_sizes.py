"""The blocks of MobileNetV3, without its layers: importers of weights need them, and no JAX."""

from typing import NamedTuple

EPSILON = 1e-5
"""Added to the variance. It is timm's; the importer brings statistics of networks with another one in line."""


class BlockSpec(NamedTuple):
    """An inverted bottleneck.

    Attributes:
      kernel: rows and columns of the depthwise kernel.
      expanded: channels inside.
      channels: of the result.
      squeeze: has squeeze-and-excitation.
      hard_swish: activate by hard-swish, not ReLU.
      stride: step of the depthwise kernel.
    """

    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int


class Size(NamedTuple):
    """How the networks differ.

    Attributes:
      blocks: first to last.
      features: channels of the dense layer before the classifier.
    """

    blocks: tuple[BlockSpec, ...]
    features: int


SIZES = {
    "mobilenet_v3_small": Size(
        (
            BlockSpec(3, 16, 16, True, False, 2),
            BlockSpec(3, 72, 24, False, False, 2),
            BlockSpec(3, 88, 24, False, False, 1),
            BlockSpec(5, 96, 40, True, True, 2),
            BlockSpec(5, 240, 40, True, True, 1),
            BlockSpec(5, 240, 40, True, True, 1),
            BlockSpec(5, 120, 48, True, True, 1),
            BlockSpec(5, 144, 48, True, True, 1),
            BlockSpec(5, 288, 96, True, True, 2),
            BlockSpec(5, 576, 96, True, True, 1),
            BlockSpec(5, 576, 96, True, True, 1),
        ),
        features=1024,
    ),
    "mobilenet_v3_large": Size(
        (
            BlockSpec(3, 16, 16, False, False, 1),
            BlockSpec(3, 64, 24, False, False, 2),
            BlockSpec(3, 72, 24, False, False, 1),
            BlockSpec(5, 72, 40, True, False, 2),
            BlockSpec(5, 120, 40, True, False, 1),
            BlockSpec(5, 120, 40, True, False, 1),
            BlockSpec(3, 240, 80, False, True, 2),
            BlockSpec(3, 200, 80, False, True, 1),
            BlockSpec(3, 184, 80, False, True, 1),
            BlockSpec(3, 184, 80, False, True, 1),
            BlockSpec(3, 480, 112, True, True, 1),
            BlockSpec(3, 672, 112, True, True, 1),
            BlockSpec(5, 672, 160, True, True, 2),
            BlockSpec(5, 960, 160, True, True, 1),
            BlockSpec(5, 960, 160, True, True, 1),
        ),
        features=1280,
    ),
}
