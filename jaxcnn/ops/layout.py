"""Where the images of a batch stand in memory: outermost for everybody, but beside the channels for CPU kernels.

A convolution's innermost loop runs along a row of the map, and the short rows of small maps leave most of a vector or
matrix unit idle. With the images in the place of the columns, [height, width, batch, channels], that loop is as long
as the batch on every map; the padding around a map falls to outer loops, which skip it; and the gradient of a kernel,
a sum over images, finds the images beside each other. (A 3x3 convolution, 512 channels, 4x4, batch 128, bfloat16 on
AVX-512: 1,416 instead of 785 GFLOP/s for its value, 1,395 instead of 554 for the gradient of its kernel.)

Whatever the networks do to a map goes through `in_hwnc`, which turns it there and back. Between two such steps the
turns are inverse to each other, and XLA removes both; the networks see ordinary [batch, height, width, channels].
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Shaped

type Hwnc = Float[Array, "_height _width _batch _channels"]
"""A map with the images inside: [height, width, batch, channels]."""


def in_hwnc(function: Callable[..., Array], *maps: Array, cpu: bool) -> Array:
    """Applies a function of maps to them as they are, or with the images inside if `cpu`.

    Args:
      function: from [height, width, batch, channels] to the same if `cpu`, else from and to ordinary maps.
      maps: its arguments.
      cpu: whether to turn them.
    """
    if not cpu:
        return function(*maps)
    return to_nhwc(function(*map(to_hwnc, maps)))


def to_hwnc(
    x: Shaped[Array, "batch height width channels"],
) -> Shaped[Array, "height width batch channels"]:
    """Turns a map for the CPU kernels."""
    return x.transpose(1, 2, 0, 3)


def to_nhwc(
    x: Shaped[Array, "height width batch channels"],
) -> Shaped[Array, "batch height width channels"]:
    """Turns a map back."""
    return x.transpose(2, 0, 1, 3)
