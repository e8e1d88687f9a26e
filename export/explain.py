"""More outputs than the classes: the pooled features, and a map of where the model looked."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from export.errors import UnsupportedError

_SMALLEST = 1e-30
"""Evidence below this is none: dividing by it would show noise."""

Classifier = Callable[[UInt8[Array, "batch height width 3"]], Float32[Array, "batch classes"]]


def split(classifier: Classifier, image: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A classifier of Flax modules cut in two, at its last feature map.

    That is the result with four axes that a module inside of the network gives last.

    Returns:
      The map, and the rest of the classifier as a function of it.

    Raises:
      UnsupportedError: no module gives one.
    """
    maps: dict[int, Any] = {}

    def keep(number: int, result: Any) -> Any:
        if result.ndim == 4:
            maps[number] = result
        return result

    _intercepted(classifier, image, keep)
    if not maps:
        raise UnsupportedError("no module of this network gives a feature map; leave features and heatmap out")
    last = max(maps)

    def rest(features: Any) -> Any:
        return _intercepted(classifier, image, lambda number, result: features if number == last else result)

    return maps[last], rest


def _intercepted(classifier: Classifier, image: Any, change: Callable[[int, Any], Any]) -> Any:
    """Calls a classifier, with the results of the modules inside it changed, counted in the order they are given."""
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
    """The logits of a classifier of Flax modules, and with them what explains them.

    Returns:
      `logits`; `features` if asked for, float32 [batch, channels]: the mean of each channel of the last feature map,
      to search or cluster pictures by; `heatmap` if asked for, float32 [batch, rows, columns] from 0 to 1: where the
      evidence for the top class is.

    Raises:
      UnsupportedError: no module of it gives a feature map.
    """
    feature_map, rest = split(classifier, image)
    wide = feature_map.astype(jnp.float32)
    logits, backward = jax.vjp(rest, wide) if heatmap else (rest(wide), None)
    outputs = {"logits": logits}
    if features:
        outputs["features"] = wide.mean((1, 2))
    if backward is None:
        return outputs
    with jax.named_scope("heatmap"):
        top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        outputs["heatmap"] = _activation_map(wide, *backward(top))
    return outputs


def _activation_map(
    feature_map: Float32[Array, "batch rows columns channels"], slopes: Float32[Array, "batch rows columns channels"]
) -> Float32[Array, "batch rows columns"]:
    """The class activation map (Zhou et al. 2016) of the class whose logit has these slopes.

    Each channel is weighted by what the logit gains with it. Of a pooled map and one linear layer that is the layer's
    row of weights; with layers in between it is their slope at this picture, as in Grad-CAM (Selvaraju et al. 2017).
    What speaks against the class counts as zero. The largest value of each picture is 1, or 0 if nothing speaks for
    the class.
    """
    evidence = jax.nn.relu((feature_map * slopes.mean((1, 2), keepdims=True)).sum(-1))
    return evidence / jnp.maximum(evidence.max((1, 2), keepdims=True), _SMALLEST)
