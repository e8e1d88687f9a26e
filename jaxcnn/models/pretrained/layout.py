"""From the tensors of a PyTorch network to the variables of one of ours."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jaxcnn.errors import UserError

type Renames = Iterable[tuple[str, str]]
"""Pairs of a regular expression for the path of a PyTorch module and the path of ours, which may refer to groups.
Arrays that belong to no layer, such as a layer scale, are listed by their whole name."""

LEAVES = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}
"""Paths of the arrays of a module that have one axis: normalisations and biases."""


def to_variables(tensors: Mapping[str, np.ndarray], modules: Renames) -> dict[str, np.ndarray]:
    """Renames and transposes the tensors of a PyTorch network.

    Convolution kernels become [rows, columns, inputs of a group, outputs], dense ones [inputs, outputs]. A dense layer
    of PyTorch may be a 1x1 convolution here: our convolutions are the modules whose names end with `conv`.

    Args:
      tensors: a `state_dict`.
      modules: how its modules are called here; the first expression that matches a whole path counts.

    Returns:
      float32 arrays by their paths in our network, such as `params/classifier/kernel`.

    Raises:
      UserError: a tensor belongs to none of the modules.
    """
    patterns = [(re.compile(pattern), template) for pattern, template in modules]
    found = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        # Arrays of layers are listed by the layer, all others by themselves.
        listed = module if leaf in LEAVES else name
        matches = ((pattern.fullmatch(listed), template) for pattern, template in patterns)
        path = next((match.expand(template) for match, template in matches if match), None)
        if path is None:
            raise UserError(f"the tensor {name} belongs to no part of this network")
        values = tensor.astype(np.float32)
        if listed == name:
            found[f"params/{path}"] = values
        elif values.ndim == 1:
            found[LEAVES[leaf].format(path)] = values
        else:
            found[f"params/{path}/kernel"] = _kernel(values, is_conv=path.endswith("conv"))
    return found


def _kernel(weight: np.ndarray, *, is_conv: bool) -> np.ndarray:
    """Transposes the weight of a convolution or dense layer, which may be the other one here if it is 1x1."""
    kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    return kernel[None, None] if is_conv and kernel.ndim == 2 else kernel
