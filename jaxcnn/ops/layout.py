"""The layout of maps in memory: NHWC for the networks, HWNC for the CPU kernels.

The letters are JAX's: N is the batch, H and W are height and width, C is the channels, the last one being contiguous in
memory. A convolution's innermost loop runs along a row of the map, and the short rows of small maps leave most of a
vector or matrix unit idle. HWNC puts the images where the columns were, which has three effects:

- The innermost loop is as long as the batch, on every map.
- The padding around a map belongs to the outer loops, which skip it.
- The gradient of a kernel is a sum over images, and finds them side by side.

A 3x3 convolution, 512 channels, 4x4, batch 128, bfloat16 on AVX-512 computes its value at 1,416 instead of 785 GFLOP/s,
and the gradient of its kernel at 1,395 instead of 554.

Each operation transposes its maps to HWNC and its result back.
Between two operations the transposes are inverse to each other, and XLA removes both. So a network is transposed once,
at its entrance, if every operation on its maps takes part. Operations without a kernel do so by `pointwise`.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Shaped

from jaxcnn.ops.dispatch import using_cpu_kernels

type Hwnc = Float[Array, "_height _width _batch _channels"]
"""A map in the layout of the CPU kernels."""


def pointwise(function: Callable[..., Array], *arrays: Array) -> Array:
    """Applies a function that treats all positions of a map alike, in the layout of the operations around it.

    Args:
      function: takes `arrays`; computes the same in NHWC as in HWNC.
      arrays: maps, of four axes, and arrays of any other rank, which have no layout.
    """
    return in_hwnc(function, *arrays) if using_cpu_kernels() else function(*arrays)


def spatial_axes() -> tuple[int, int]:
    """The axes of height and width inside of `pointwise`."""
    return (0, 1) if using_cpu_kernels() else (1, 2)


def in_hwnc[Result](function: Callable[..., Result], *arrays: Array) -> Result:
    """Applies a function of HWNC maps to NHWC maps.

    Args:
      function: its arguments and results of four axes are HWNC maps; results may be a tuple.
      arrays: NHWC maps, and arrays of any other rank, which are passed on as they are.

    Returns:
      The results of the function, maps as NHWC.
    """
    results = function(*(to_hwnc(array) if array.ndim == 4 else array for array in arrays))
    back: Result = jax.tree.map(lambda array: to_nhwc(array) if array.ndim == 4 else array, results)
    return back


def to_hwnc(x: Shaped[Array, "batch height width channels"]) -> Shaped[Array, "height width batch channels"]:
    """Transposes a map from NHWC to HWNC."""
    return x.transpose(1, 2, 0, 3)


def to_nhwc(x: Shaped[Array, "height width batch channels"]) -> Shaped[Array, "batch height width channels"]:
    """Transposes a map from HWNC to NHWC."""
    return x.transpose(2, 0, 1, 3)
