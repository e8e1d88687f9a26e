"""Weights of MobileNetV3 in the layouts of timm and of torchvision."""

import re
from collections.abc import Iterator

from jaxcnn.models.mobilenet_v3_sizes import EPSILON, SIZES, BlockSpec

TORCHVISION_EPSILON = 1e-3
"""What torchvision's networks add to the variance."""
VARIANCE_OFFSET = TORCHVISION_EPSILON - EPSILON
"""Added to torchvision's running variances: our networks then normalise as torchvision's do."""

STAGES = {"mobilenet_v3_small": (1, 2, 3, 2, 3), "mobilenet_v3_large": (1, 2, 3, 4, 2, 3)}
"""Blocks of each of timm's stages."""

type Names = list[tuple[str, str]]
"""The names of modules in another layout, as regular expressions, and ours."""


def timm_modules(network: str) -> Names:
    """Returns the names of the modules in timm's layout."""
    places = [(stage, block) for stage, blocks in enumerate(STAGES[network]) for block in range(blocks)]
    modules = [("conv_stem", "stem_conv"), ("bn1", "stem_norm")]
    for i, (stage, block) in enumerate(places):
        source, target = f"blocks.{stage}.{block}", f"block_{i}"
        # The first block has nothing to expand, and its projection another name.
        convs = (("conv_dw", "bn1"), ("conv_pw", "bn2")) if i == 0 else (("conv_pw", "bn1"), ("conv_dw", "bn2"))
        parts = ("depthwise", "project") if i == 0 else ("expand", "depthwise", "project")
        for (conv, norm), part in zip((*convs, ("conv_pwl", "bn3")), parts, strict=False):
            modules += [(f"{source}.{conv}", f"{target}/{part}_conv"), (f"{source}.{norm}", f"{target}/{part}_norm")]
        for part in ("reduce", "expand"):
            modules.append((f"{source}.se.conv_{part}", f"{target}/squeeze/{part}_conv"))
    last = f"blocks.{len(STAGES[network])}.0"
    modules += [(f"{last}.conv", "last_conv"), (f"{last}.bn1", "last_norm")]
    modules += [("conv_head", "head_conv"), ("classifier", "classifier")]
    return [(re.escape(source), target) for source, target in modules]


def torchvision_modules(network: str) -> Names:
    """Returns the names of the modules in torchvision's layout."""
    blocks = SIZES[network].blocks
    modules = [("features.0.0", "stem_conv"), ("features.0.1", "stem_norm")]
    channels = blocks[0].expanded
    for i, spec in enumerate(blocks):
        for j, part in enumerate(_parts(spec, channels)):
            source, target = f"features.{i + 1}.block.{j}", f"block_{i}"
            if part == "squeeze":
                modules += [(f"{source}.fc1", f"{target}/squeeze/reduce_conv")]
                modules += [(f"{source}.fc2", f"{target}/squeeze/expand_conv")]
            else:
                modules += [(f"{source}.0", f"{target}/{part}_conv"), (f"{source}.1", f"{target}/{part}_norm")]
        channels = spec.channels
    last = f"features.{len(blocks) + 1}"
    modules += [(f"{last}.0", "last_conv"), (f"{last}.1", "last_norm")]
    modules += [("classifier.0", "head_conv"), ("classifier.3", "classifier")]
    return [(re.escape(source), target) for source, target in modules]


def _parts(spec: BlockSpec, channels: int) -> Iterator[str]:
    """Yields the parts of a block that has an input of so many channels, first to last."""
    if spec.expanded != channels:
        yield "expand"
    yield "depthwise"
    if spec.squeeze:
        yield "squeeze"
    yield "project"
