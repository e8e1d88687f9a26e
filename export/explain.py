"""Explanatory outputs beside the logits: the features that are classified, and a heatmap of where the model looked.

A classifier is a function that calls modules of Flax. Two of them are known by their names: `classifier`, the last
layer, and `attention_norm`, the layer normalisation before each attention of a vision transformer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from export.errors import UnsupportedError

_SMALLEST = 1e-30
"""Smallest evidence that a heatmap is scaled by; dividing by less would amplify rounding errors."""

Classifier = Callable[[UInt8[Array, "batch height width 3"]], Float32[Array, "batch classes"]]


class _Call(NamedTuple):
    """A call of a module inside a network.

    Attributes:
      number: its place in the order in which the calls end.
      name: the module's name.
      arguments: what it was given.
      result: what it returned.
    """

    number: int
    name: str
    arguments: tuple[Any, ...]
    result: Any

    @property
    def is_map(self) -> bool:
        """Whether it returned a map of several positions; a pooled map has one."""
        shape = self.result.shape
        return len(shape) == 4 and shape[1] * shape[2] > 1


def split(classifier: Classifier, image: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Splits a classifier of Flax modules at its last feature map.

    The last feature map is the last result with four axes, and more than one position, that a module inside the network
    returns. In a vision transformer it is made of the patches that the last attention sees, which is the usual place
    for Grad-CAM there: behind it only the class token is read.

    Returns:
      The feature map, and a function from it to the logits and the input of the module `classifier`.

    Raises:
      UnsupportedError: no module returns a feature map.
    """
    calls: list[_Call] = []

    def keep(call: _Call) -> Any:
        if call.is_map or call.name == "attention_norm":
            calls.append(call)
        return call.result

    _intercepted(classifier, image, keep)
    if not any(call.is_map for call in calls):
        raise UnsupportedError("no module of this network returns a feature map; leave out the heatmap")
    last = calls[-1]
    feature_map = last.result if last.is_map else _patches(calls)

    # Substituting the result leaves the modules before it without effect; tracing drops them.
    def rest(features: Any) -> tuple[Any, Any]:
        result = features if last.is_map else _tokens(last.result, features)

        def substitute(call: _Call) -> Any:
            return result if call.number == last.number else call.result

        return classified(lambda image: _intercepted(classifier, image, substitute), image)

    return feature_map, rest


def _patches(calls: list[_Call]) -> Any:
    """Returns the last tokens without the class token, which is the first, as a map."""
    tokens = calls[-1].result
    # The patches come from the last map.
    rows, columns = next(call.result.shape[1:3] for call in reversed(calls) if call.is_map)
    return tokens[:, 1:].reshape(tokens.shape[0], rows, columns, tokens.shape[2])


def _tokens(tokens: Any, feature_map: Any) -> Any:
    """Returns the tokens with other patches."""
    patches = feature_map.reshape(tokens.shape[0], tokens.shape[1] - 1, tokens.shape[2])
    return jnp.concatenate([tokens[:, :1], patches.astype(tokens.dtype)], axis=1)


def classified(classifier: Classifier, image: Any) -> tuple[Any, Any]:
    """Returns the logits of a classifier of Flax modules, and what its module `classifier` was given.

    Raises:
      UnsupportedError: it has no such module.
    """
    inputs: list[Any] = []

    def keep(call: _Call) -> Any:
        if call.name == "classifier":
            inputs.append(call.arguments[0])
        return call.result

    logits = _intercepted(classifier, image, keep)
    if not inputs:
        raise UnsupportedError("no module of this network is called classifier; leave out features and heatmap")
    return logits, inputs[0]


def _intercepted(classifier: Classifier, image: Any, change: Callable[[_Call], Any]) -> Any:
    """Calls a classifier and replaces the result of each module inside it by what `change` returns for the call."""
    count = 0

    def intercept(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        nonlocal count
        result = call(*arguments, **options)
        inside = context.method_name == "__call__" and context.module.path
        if not inside or not hasattr(result, "shape"):
            return result
        count += 1
        return change(_Call(count, context.module.name, arguments, result))

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
      `features`, float32 [batch, channels]: what the last layer sees, to search or cluster by. It is what timm calls
        `forward_head(x, pre_logits=True)`.
      `heatmap`, float32 [batch, rows, columns] from 0 to 1: where the evidence for the top class is.

    Raises:
      UnsupportedError: no module is called `classifier`, or, for a heatmap, no module returns a feature map.
    """
    if heatmap:
        feature_map, rest = split(classifier, image)
        wide = feature_map.astype(jnp.float32)
        logits, backward, seen = jax.vjp(rest, wide, has_aux=True)
    else:
        logits, seen = classified(classifier, image)
    outputs = {"logits": logits}
    if features:
        outputs["features"] = seen.astype(jnp.float32)
    if not heatmap:
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
