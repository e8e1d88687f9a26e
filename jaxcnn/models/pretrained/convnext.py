"""Weights of ConvNeXt in timm's layout."""

MODULES = (
    (r"stem\.0", "stem_conv"),
    (r"stem\.1", "stem_norm"),
    (r"stages\.(\d+)\.downsample\.0", r"downsample_\1_norm"),
    (r"stages\.(\d+)\.downsample\.1", r"downsample_\1_conv"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", r"stage_\1_block_\2/gamma"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw", r"stage_\1_block_\2/depthwise_conv"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm", r"stage_\1_block_\2/norm"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc1", r"stage_\1_block_\2/expand_conv"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2", r"stage_\1_block_\2/project_conv"),
    (r"head\.norm", "head_norm"),
    (r"head\.fc", "classifier"),
)
"""The names of its modules and single arrays, and ours."""
