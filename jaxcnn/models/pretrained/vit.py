"""Weights of ViT and DeiT in timm's layout."""

import math
from collections.abc import Mapping

import numpy as np

from jaxcnn.errors import UserError

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


def check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if tensors are of a variant of the network that jaxcnn lacks."""
    from jaxcnn.models.vit import GRID, PATCH

    if any(name.startswith(("dist_token", "head_dist")) for name in tensors):
        raise UserError(
            "the weights are of a distilled DeiT, which has a second token and a second classifier; jaxcnn has the "
            "network without them, such as timm's deit_tiny_patch16_224 and deit_small_patch16_224"
        )
    positions = tensors.get("pos_embed", np.zeros((1, 1 + GRID**2, 0))).shape[1]
    if positions != 1 + GRID**2:
        patch = tensors["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in tensors else PATCH
        side = patch * math.isqrt(max(0, positions - 1))
        raise UserError(
            f"the weights have {positions} positions, as for pictures of {side}x{side} pixels in patches of "
            f"{patch}x{patch}, but jaxcnn's networks have {1 + GRID**2}, for {PATCH * GRID}x{PATCH * GRID}; take "
            f"the weights whose name ends with patch{PATCH}_{PATCH * GRID}, which may be fine-tuned "
            "at any --data.image_size"
        )
