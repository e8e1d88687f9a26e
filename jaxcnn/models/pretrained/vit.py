"""Weights of ViT and DeiT in timm's layout."""

MODULES = (
    ("cls_token", "class_token"),
    ("pos_embed", "positions"),
    (r"patch_embed\.proj", "patch_conv"),
    (r"blocks\.(\d+)\.norm1", r"block_\1/attention_norm"),
    (r"blocks\.(\d+)\.attn\.qkv", r"block_\1/attention/qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"block_\1/attention/projection"),
    (r"blocks\.(\d+)\.norm2", r"block_\1/mlp_norm"),
    (r"blocks\.(\d+)\.mlp\.fc1", r"block_\1/expand"),
    (r"blocks\.(\d+)\.mlp\.fc2", r"block_\1/project"),
    ("norm", "norm"),
    ("head", "classifier"),
)
"""The names of its modules and single arrays, and ours."""
