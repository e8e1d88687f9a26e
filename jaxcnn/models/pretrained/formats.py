"""The layouts of weights that others publish, recognised by their tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxcnn.config import ModelName
from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import convnext, efficientnet_lite, mobilenet_v3, resnet_v1, vit
from jaxcnn.models.pretrained.layout import Renames, to_variables


@dataclass(frozen=True)
class Format:
    """How a network is stored.

    Attributes:
      network: its name here. DeiT is stored as the ViT of its size.
      tensor: a tensor that only networks of this format have.
      shape: the shape of that tensor.
      modules: the names of the modules, and ours.
      variance_offset: added to running variances, for a network that adds so much more to them than ours.
      check: raises UserError if tensors are of a variant that jaxcnn lacks; None: every tensor is accepted.
    """

    network: ModelName
    tensor: str
    shape: tuple[int, ...]
    modules: Renames
    variance_offset: float = 0.0
    check: Callable[[Mapping[str, np.ndarray]], None] | None = None


FORMATS = (
    Format("resnet18", "layer1.0.conv1.weight", (64, 64, 3, 3), resnet_v1.MODULES),
    Format("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1), resnet_v1.MODULES),
    Format(
        "mobilenet_v3_small",
        "blocks.5.0.conv.weight",
        (576, 96, 1, 1),
        mobilenet_v3.timm_modules("mobilenet_v3_small"),
    ),
    Format(
        "mobilenet_v3_large",
        "blocks.6.0.conv.weight",
        (960, 160, 1, 1),
        mobilenet_v3.timm_modules("mobilenet_v3_large"),
    ),
    Format(
        "mobilenet_v3_small",
        "features.12.0.weight",
        (576, 96, 1, 1),
        mobilenet_v3.torchvision_modules("mobilenet_v3_small"),
        mobilenet_v3.VARIANCE_OFFSET,
    ),
    Format(
        "mobilenet_v3_large",
        "features.16.0.weight",
        (960, 160, 1, 1),
        mobilenet_v3.torchvision_modules("mobilenet_v3_large"),
        mobilenet_v3.VARIANCE_OFFSET,
    ),
    Format("convnext_atto", "stages.3.blocks.1.gamma", (320,), convnext.MODULES),
    Format("convnext_femto", "stages.3.blocks.1.gamma", (384,), convnext.MODULES),
    Format("convnext_pico", "stages.3.blocks.1.gamma", (512,), convnext.MODULES),
    Format("convnext_nano", "stages.3.blocks.1.gamma", (640,), convnext.MODULES),
    Format("convnext_tiny", "stages.3.blocks.2.gamma", (768,), convnext.MODULES),
    Format("vit_tiny", "blocks.11.attn.qkv.weight", (576, 192), vit.MODULES, check=vit.check_tensors),
    Format("vit_small", "blocks.11.attn.qkv.weight", (1152, 384), vit.MODULES, check=vit.check_tensors),
    Format("efficientnet_lite0", "_blocks.15._expand_conv.weight", (1152, 192, 1, 1), efficientnet_lite.MODULES),
    Format("efficientnet_lite1", "_blocks.20._expand_conv.weight", (1152, 192, 1, 1), efficientnet_lite.MODULES),
    Format("efficientnet_lite2", "_blocks.20._expand_conv.weight", (1248, 208, 1, 1), efficientnet_lite.MODULES),
    Format("efficientnet_lite3", "_blocks.23._expand_conv.weight", (1392, 232, 1, 1), efficientnet_lite.MODULES),
    Format("efficientnet_lite4", "_blocks.29._expand_conv.weight", (1632, 272, 1, 1), efficientnet_lite.MODULES),
)
"""Every layout. A network may have several."""


def recognise(tensors: Mapping[str, np.ndarray]) -> tuple[ModelName, dict[str, np.ndarray]]:
    """Returns the network of a `state_dict` of timm or torchvision, and its variables by path.

    Raises:
      UserError: it is of no network that jaxcnn has, or of a variant that it lacks.
    """
    for form in FORMATS:
        found = tensors.get(form.tensor)
        if found is not None and found.shape == form.shape:
            if form.check is not None:
                form.check(tensors)
            variables = to_variables(tensors, form.modules)
            offset = np.float32(form.variance_offset)
            return form.network, {
                path: array + offset if offset and path.endswith("/var") else array for path, array in variables.items()
            }
    known = ", ".join(dict.fromkeys(form.network for form in FORMATS))
    raise UserError(f"the tensors are of none of the networks {known} in timm's or torchvision's layout")
