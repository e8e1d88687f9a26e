"""Weights of EfficientNet-Lite in the layout of the package `efficientnet-lite-pytorch`, with TensorFlow's names."""

MODULES = (
    ("_conv_stem", "stem_conv"),
    ("_bn0", "stem_norm"),
    (r"_blocks\.(\d+)\._expand_conv", r"block_\1/expand_conv"),
    (r"_blocks\.(\d+)\._bn0", r"block_\1/expand_norm"),
    (r"_blocks\.(\d+)\._depthwise_conv", r"block_\1/depthwise_conv"),
    (r"_blocks\.(\d+)\._bn1", r"block_\1/depthwise_norm"),
    (r"_blocks\.(\d+)\._project_conv", r"block_\1/project_conv"),
    (r"_blocks\.(\d+)\._bn2", r"block_\1/project_norm"),
    ("_conv_head", "head_conv"),
    ("_bn1", "head_norm"),
    ("_fc", "classifier"),
)
"""The names of its modules, and ours."""
