"""TrivialAugment (Müller and Hutter 2021): one random operation of random strength on each training picture.

Operations and strengths are the paper's wide search space. Each operation takes a picture, its strength from
0 to 1 and a sign, 1 or -1, and computes what Pillow's operation of that name does; some levels differ by one, and
fewer than one in a hundred pixels of a turned or sheared picture are taken from the neighbour.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

type Picture = UInt8[Array, "3 height width"]
type Scalar = Float[Array, ""]
type Levels = Float[Array, "#channels #height #width"]

STRENGTHS = 31
"""Number of strengths, equally likely, from none to the largest."""
LARGEST_FACTOR = 0.99
"""Largest change of a factor, such as of contrast, and largest shear."""
LARGEST_SHIFT = 32 / 224
"""Largest translation as a share of the side: the paper's 32 pixels, for pictures of ImageNet."""
LARGEST_ANGLE = math.radians(135)
"""Largest rotation in radians."""


def trivial_augment(
    key: Key[Array, ""], x: Float[Array, "batch 3 height width"]
) -> Float[Array, "batch 3 height width"]:
    """Changes each picture by one random operation; levels are rounded to whole ones.

    Args:
      key: all random numbers are a function of it.
      x: RGB in [0, 255].
    """
    batch = len(x)
    operation_key, strength_key, sign_key = jax.random.split(key, 3)
    chosen = jax.random.randint(operation_key, (batch,), 0, len(OPERATIONS))
    strength = jax.random.randint(strength_key, (batch,), 0, STRENGTHS).astype(jnp.float32) / (STRENGTHS - 1)
    sign = jax.random.rademacher(sign_key, (batch,), jnp.float32)

    def change(item: tuple[Int[Array, ""], Picture, Scalar, Scalar]) -> Picture:
        index, picture, *arguments = item
        changed: Picture = lax.switch(index, tuple(OPERATIONS.values()), picture, *arguments)
        return changed

    # One after the other, a CPU computes only the operation that was chosen; side by side, all are computed, and one of
    # the results is used, which suits accelerators.
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    run: Callable[..., Array] = (lambda items: lax.map(change, items)) if alone else jax.vmap(change)
    return run((chosen, jnp.round(x).astype(jnp.uint8), strength, sign)).astype(jnp.float32)


def _identity(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return picture


def _auto_contrast(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Stretches the levels of each channel to the whole range."""
    x = picture.astype(jnp.int32)
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    stretched = (x - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, x).astype(jnp.uint8)


def _equalize(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Spreads the levels of each channel evenly over the whole range."""

    def equalize(channel: UInt8[Array, "height width"]) -> UInt8[Array, "height width"]:
        counts = jnp.zeros(256, jnp.int32).at[channel.reshape(-1)].add(1)
        # Pixels in each of 255 steps, without the pixels of the highest level.
        step = (channel.size - counts[channel.max()]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255).astype(jnp.uint8)
        return jnp.where(step > 0, table[channel], channel)

    return jax.vmap(equalize)(picture)


def _posterize(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Keeps the upper bits, from all 8 down to 2."""
    lost = jnp.round(strength * 6).astype(jnp.uint8)
    return (picture >> lost) << lost


def _solarize(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Inverts the levels from a threshold on, which falls from 255 to 0."""
    return jnp.where(picture.astype(jnp.float32) < 255 * (1 - strength), picture, 255 - picture)


def _brightness(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _blend(jnp.zeros((1, 1, 1)), picture, strength * sign)


def _color(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _blend(_gray(picture), picture, strength * sign)


def _contrast(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _blend(jnp.floor(_gray(picture).mean(keepdims=True) + 0.5), picture, strength * sign)


def _sharpness(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Blurs a picture, or adds what blurring would remove; its outermost pixels stay."""
    x = picture.astype(jnp.int32)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    # Weights of 1 around a 5, which add up to 13; rounded to nearest.
    smooth = (2 * (around + 4 * x[:, 1:-1, 1:-1]) + 13) // 26
    return _blend(x.at[:, 1:-1, 1:-1].set(smooth).astype(jnp.float32), picture, strength * sign)


def _blend(other: Levels, picture: Picture, change: Scalar) -> Picture:
    """Returns `other` for a factor of 0, the picture for 1, and mixtures for others; it is 1 + .99 `change`."""
    x = picture.astype(jnp.float32)
    return jnp.clip(other + (1 + LARGEST_FACTOR * change) * (x - other), 0, 255).astype(jnp.uint8)


def _gray(picture: Picture) -> Float[Array, "1 height width"]:
    """The luma in whole levels (ITU-R BT.601)."""
    red, green, blue = picture.astype(jnp.int32)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[None].astype(jnp.float32)


def _rotate(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    """Turns counter-clockwise about the centre."""
    angle = LARGEST_ANGLE * strength * sign
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = picture.shape[2] / 2, picture.shape[1] / 2
    return _sample(picture, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y))


def _shear_x(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _sample(picture, (1.0, LARGEST_FACTOR * strength * sign, 0.0), (0.0, 1.0, 0.0))


def _shear_y(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _sample(picture, (1.0, 0.0, 0.0), (LARGEST_FACTOR * strength * sign, 1.0, 0.0))


def _translate_x(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _sample(picture, (1.0, 0.0, LARGEST_SHIFT * picture.shape[2] * strength * sign), (0.0, 1.0, 0.0))


def _translate_y(picture: Picture, strength: Scalar, sign: Scalar) -> Picture:
    return _sample(picture, (1.0, 0.0, 0.0), (0.0, 1.0, LARGEST_SHIFT * picture.shape[1] * strength * sign))


type Coefficients = tuple[Scalar | float, Scalar | float, Scalar | float]


def _sample(picture: Picture, to_x: Coefficients, to_y: Coefficients) -> Picture:
    """Takes each pixel from the nearest place that an affine map gives; black outside of the picture.

    Args:
      picture: where the pixels are taken from.
      to_x: what x, y and 1 are multiplied by for the column to take.
      to_y: the same for the row.
    """
    _, height, width = picture.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    x = jnp.arange(width, dtype=jnp.float32)[None] + 0.5
    column, row = (
        jnp.floor(a * x + b * y + c).astype(jnp.int32) + jnp.zeros((height, width), jnp.int32)
        for a, b, c in (to_x, to_y)
    )
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = jnp.where(inside, row * width + column, 0).reshape(-1)
    taken = jnp.take(picture.reshape(3, -1), place, axis=1).reshape(picture.shape)
    return jnp.where(inside, taken, 0)


OPERATIONS: dict[str, Callable[[Picture, Scalar, Scalar], Picture]] = {
    "identity": _identity,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""The operations by name, each as likely as the others."""
