"""The second view of a picture, its mirror image, whose prediction is averaged with that of the picture."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from export.explain import Classifier


def with_mirror_image(classifier: Classifier) -> Classifier:
    """Returns a classifier whose probabilities are the mean of those for a picture and for its mirror image.

    Its logits are the logarithms of these probabilities: their softmax gives the probabilities back. Both views go
    through the network in one batch, so that the file has its weights once.
    """

    def averaged(image: UInt8[Array, "batch height width 3"]) -> Float32[Array, "batch classes"]:
        views = jnp.stack([image, image[:, :, ::-1]], axis=1)
        logits = classifier(views.reshape(-1, *image.shape[1:]))
        logarithms = jax.nn.log_softmax(logits).reshape(-1, 2, logits.shape[-1])
        # Without the largest term, small probabilities would become 0.
        largest = logarithms.max(axis=1)
        mean: Array = largest + jnp.log(jnp.exp(logarithms - largest[:, None]).mean(axis=1))
        return mean

    return averaged
