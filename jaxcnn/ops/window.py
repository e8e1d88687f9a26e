"""Strides, padding and dilation: how a kernel moves over a map."""

from typing import NamedTuple

type Pairs = tuple[tuple[int, int], tuple[int, int]]
"""Two numbers for the rows, two for the columns."""
type Sides = tuple[int, ...]
"""Height and width."""


class Window(NamedTuple):
    """How a kernel moves over a map. Each field has a part for rows and one for columns.

    Attributes:
      strides: step of the kernel.
      padding: zeros before and after the map; negative numbers crop it.
      dilation: distance between the pixels that neighbouring taps of the kernel see.
    """

    strides: tuple[int, int]
    padding: Pairs
    dilation: tuple[int, int]

    def transposed(self, map_sides: Sides, result_sides: Sides, taps: Sides) -> "Window":
        """The window of the gradient of the input: a convolution of a gradient as dense, with the flipped kernel.

        Args:
          map_sides: height and width of the input.
          result_sides: height and width of the result.
          taps: rows and columns of the kernel.
        """
        padding = []
        for axis in range(2):
            # The gradient of a pixel spreads over `reach` more; what fell into the forward pass's padding is cut off.
            reach = (taps[axis] - 1) * self.dilation[axis]
            before = reach - self.padding[axis][0]
            spread = (result_sides[axis] - 1) * self.strides[axis] + 1
            padding.append((before, map_sides[axis] + reach - spread - before))
        return Window((1, 1), (padding[0], padding[1]), self.dilation)
