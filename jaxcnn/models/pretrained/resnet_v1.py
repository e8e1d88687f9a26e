"""Weights of ResNet-18 and ResNet-50 in the layout that timm and torchvision share."""

MODULES = (
    ("conv1", "stem_conv"),
    ("bn1", "stem_norm"),
    *(
        (rf"layer{i + 1}\.(\d+)\.{source}{j + 1}", rf"stage_{i}_block_\1/{target}_{j}")
        for i in range(4)
        for j in range(3)
        for source, target in (("conv", "conv"), ("bn", "norm"))
    ),
    *((rf"layer{i + 1}\.(\d+)\.downsample\.0", rf"stage_{i}_block_\1/shortcut_conv") for i in range(4)),
    *((rf"layer{i + 1}\.(\d+)\.downsample\.1", rf"stage_{i}_block_\1/shortcut_norm") for i in range(4)),
    ("fc", "classifier"),
)
"""The names of its modules, and ours."""
