"""The features that the classifier of a network sees."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxcnn.models.layers import Images
from jaxcnn.models.network import Network


def pooled_features(network: Network, variables: Any, images: Images) -> Float32[Array, "batch features"]:
    """Computes the input of the module `classifier` in inference: what a new head is fitted to.

    Under `jit` nothing of the head is computed. A network need not provide anything but a head of that name.

    Args:
      network: the network.
      variables: its variables; the values of the head do not matter.
      images: pictures in RGB, from 0 to 255.
    """
    inputs: list[Any] = []

    def keep(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        if context.module.name == "classifier" and context.method_name == "__call__":
            inputs.append(arguments[0])
        return call(*arguments, **options)

    with nn.intercept_methods(keep):
        network.apply(variables, images, train=False)
    (features,) = inputs
    return jnp.asarray(features, jnp.float32)


def group_widths(network: Network, variables: Any, images: Any) -> tuple[int, ...]:
    """Returns how many of the features come from each place in the network, in their order; computes nothing.

    Args:
      network: the network.
      variables: its variables, or their shapes.
      images: pictures of any size, or their shape.
    """

    def parts(variables: Any, images: Any) -> Any:
        features = pooled_features(network, variables, images)
        _, kept = network.apply(variables, images, train=False, mutable=["intermediates"])
        # A network that does not call `pool` has one group.
        return kept.get("intermediates", features)

    return tuple(leaf.shape[-1] for leaf in jax.tree.leaves(jax.eval_shape(parts, variables, images)))
