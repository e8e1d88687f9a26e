"""Explanatory outputs beside the logits: pooled features, and a heatmap of where the model looked."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from export.errors import UnsupportedError

_SMALLEST = 1e-30
"""Smallest evidence that a heatmap is scaled by; dividing by less would amplify rounding errors."""

Classifier = Callable[[UInt8[Array, "batch height width 3"]], Float32[Array, "batch classes"]]


def split(classifier: Classifier, image: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Splits a classifier of Flax modules at its last feature map.

    The last feature map is the last result with four axes that a module inside the network returns.

    Returns:
      The feature map, and a function from it to the logits.

    Raises:
      UnsupportedError: no module returns a feature map.
    """
    maps: dict[int, Any] = {}

    def keep(number: int, result: Any) -> Any:
        if result.ndim == 4:
            maps[number] = result
        return result

    _intercepted(classifier, image, keep)
    if not maps:
        raise UnsupportedError("no module of this network returns a feature map; leave out features and heatmap")
    last = max(maps)

    # Substituting the result leaves the modules before it without effect; tracing drops them.
    def rest(features: Any) -> Any:
        return _intercepted(classifier, image, lambda number, result: features if number == last else result)

    return maps[last], rest


def _intercepted(classifier: Classifier, image: Any, change: Callable[[int, Any], Any]) -> Any:
    """Calls a classifier and replaces the result of each module inside it by `change(number, result)`."""
    count = 0

    def intercept(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        nonlocal count
        result = call(*arguments, **options)
        inside = context.method_name == "__call__" and context.module.path
        if not inside or not hasattr(result, "shape"):
            return result
        count += 1
        return change(count, result)

    with nn.intercept_methods(intercept):
        return classifier(image)


def explain(classifier: Classifier, image: Any, *, features: bool, heatmap: bool) -> dict[str, Any]:
    """Returns the logits of a classifier of Flax modules and, if asked for, what explains them.

    Args:
      classifier: the classifier.
      image: uint8 [batch, height, width, 3].
      features: adds the output `features`.
      heatmap: adds the output `heatmap`.

    Returns:
      `logits`, float32 [batch, classes].
      `features`, float32 [batch, channels]: the mean of each channel of the last feature map, to search or cluster by.
      `heatmap`, float32 [batch, rows, columns] from 0 to 1: where the evidence for the top class is.

    Raises:
      UnsupportedError: no module returns a feature map.
    """
    feature_map, rest = split(classifier, image)
    wide = feature_map.astype(jnp.float32)
    logits, backward = jax.vjp(rest, wide) if heatmap else (rest(wide), None)
    outputs = {"logits": logits}
    if features:
        outputs["features"] = wide.mean((1, 2))
    if backward is None:
        return outputs
    # The scope names the nodes, which quantization keeps in float by that name.
    with jax.named_scope("heatmap"):
        top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        outputs["heatmap"] = _activation_map(wide, *backward(top))
    return outputs


def _activation_map(
    feature_map: Float32[Array, "batch rows columns channels"], gradient: Float32[Array, "batch rows columns channels"]
) -> Float32[Array, "batch rows columns"]:
    """Returns the class activation map of the class whose logit has this gradient.

    Each channel is weighted by the mean gradient of the logit with respect to it (Grad-CAM, Selvaraju et al. 2017). If
    pooling and one linear layer follow the feature map, these are the layer's weights of the class (CAM, Zhou et al.
    2016). Negative evidence counts as zero. Each picture is scaled to a largest value of 1, or is 0 everywhere if
    nothing speaks for the class.
    """
    evidence = jax.nn.relu((feature_map * gradient.mean((1, 2), keepdims=True)).sum(-1))
    return evidence / jnp.maximum(evidence.max((1, 2), keepdims=True), _SMALLEST)
