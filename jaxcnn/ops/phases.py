"""The phases of a stride, in which the gradient of a convolution's input is computed.

A stride of 2 has two phases in each direction: the even pixels of the input were seen by some taps of the kernel, the
odd ones by the others. A gradient with zeros between its pixels would do for all of them, but the zeros would be
multiplied too: three quarters of the products at a stride of 2.
"""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.layout import Hwnc
from jaxcnn.ops.window import Sides, Window

type Taps = list[tuple[int, int]]
"""In one direction: each tap of the flipped kernel that meets a pixel of the result's gradient, and the distance of
that pixel from the phase's. Both rise evenly."""


def join_phases(
    compute: Callable[[Taps, Taps, Sides], Hwnc], window: Window, *, sides: Sides, result_sides: Sides, taps: Sides
) -> Hwnc:
    """Returns the gradient of the input of a strided convolution, put together from its phases.

    Args:
      compute: returns the pixels of a phase, from the taps along rows and along columns and the number of pixels in
        both directions.
      window: of the forward pass.
      sides: height and width of the input.
      result_sides: height and width of the result.
      taps: rows and columns of the kernel.
    """
    back = window.transposed(sides, result_sides, taps)
    rows, columns = (
        _phases(back.padding[axis][0], count=taps[axis], spacing=back.dilation[axis], stride=stride)
        for axis, stride in enumerate(window.strides)
    )
    counts = tuple(-(-side // stride) for side, stride in zip(sides, window.strides, strict=True))
    # The barrier keeps sums out of the loop that joins them, which is no fast one.
    phases = [materialize(compute(row, column, counts)) for row, column in itertools.product(rows, columns)]
    # Interleave the phases, and cut off what the last pixels do not need.
    images = phases[0].shape[2:]
    joined = jnp.stack(phases).reshape(*window.strides, *counts, *images).transpose(2, 0, 3, 1, 4, 5)
    dense = joined.reshape(counts[0] * window.strides[0], counts[1] * window.strides[1], *images)
    return dense[: sides[0], : sides[1]]


def shifted(x: Hwnc, distance: tuple[int, int], counts: Sides) -> Hwnc:
    """Returns the pixels at a distance from each of as many places as `counts` says, and zeros beyond the map."""
    edges = [
        (-start, start + count - side, 0) for start, count, side in zip(distance, counts, x.shape[:2], strict=True)
    ]
    pixels: Hwnc = lax.pad(x, jnp.zeros((), x.dtype), (*edges, (0, 0, 0), (0, 0, 0)))
    return pixels


def _phases(before: int, *, count: int, spacing: int, stride: int) -> list[Taps]:
    """Returns the taps of each phase in one direction.

    Args:
      before: zeros before a gradient that is as dense as the input.
      count: number of taps.
      spacing: distance between the pixels that neighbouring taps see.
      stride: step of the forward pass.
    """
    seen = [(tap, tap * spacing - before) for tap in range(count)]
    return [
        [(tap, (phase + at) // stride) for tap, at in seen if (phase + at) % stride == 0] for phase in range(stride)
    ]
