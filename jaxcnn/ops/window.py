"""How a kernel moves over a map."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

type Pairs = tuple[tuple[int, int], tuple[int, int]]
type Sides = tuple[int, ...]


class Window(NamedTuple):
    """Steps and borders of a convolution, in rows and columns.

    Attributes:
      strides: between positions of the kernel.
      padding: zeros before and after the map; negative ones cut it.
      dilation: distance between the pixels that neighbours of the kernel see.
    """

    strides: tuple[int, int]
    padding: Pairs
    dilation: tuple[int, int]

    def transposed(self, map_sides: Sides, result_sides: Sides, taps: Sides) -> "Window":
        """The window with which the flipped kernel takes the result's gradient, spread by `spread`, back to the map."""
        padding = []
        for axis in range(2):
            reach = (taps[axis] - 1) * self.dilation[axis]
            before = reach - self.padding[axis][0]
            spread = (result_sides[axis] - 1) * self.strides[axis] + 1
            padding.append((before, map_sides[axis] + reach - spread - before))
        return Window((1, 1), (padding[0], padding[1]), self.dilation)

    def spread(self, dy: Float[Array, "height width batch channels"]) -> Float[Array, "_height _width batch channels"]:
        """Puts zeros between the pixels of a strided result's gradient, as far apart as the kernel's positions were."""
        if self.strides == (1, 1):
            return dy
        rows, columns = self.strides
        gaps = ((0, 0, rows - 1), (0, 0, columns - 1), (0, 0, 0), (0, 0, 0))
        return lax.pad(dy, jnp.zeros((), dy.dtype), gaps)
