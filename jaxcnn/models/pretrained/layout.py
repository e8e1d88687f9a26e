"""From the tensors of a PyTorch network to the variables of one of ours."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jaxcnn.errors import UserError

type Renames = Iterable[tuple[str, str]]
"""Pairs of a regular expression for the path of a PyTorch module and the path of ours, which may refer to groups."""

NORM_LEAVES = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}
"""Paths of the arrays of a normalisation, whose weight has one axis."""


def to_variables(tensors: Mapping[str, np.ndarray], modules: Renames) -> dict[str, np.ndarray]:
    """Renames and transposes the tensors of a PyTorch network.

    Convolution kernels become [rows, columns, inputs of a group, outputs], dense ones [inputs, outputs].

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
        matches = ((pattern.fullmatch(module), template) for pattern, template in patterns)
        path = next((match.expand(template) for match, template in matches if match), None)
        if path is None or leaf not in NORM_LEAVES:
            raise UserError(f"the tensor {name} belongs to no part of this network")
        values = tensor.astype(np.float32)
        match values.ndim:
            case 4:
                found[f"params/{path}/kernel"] = values.transpose(2, 3, 1, 0)
            case 2:
                found[f"params/{path}/kernel"] = values.T
            case _:
                found[NORM_LEAVES[leaf].format(path)] = values
    return found
