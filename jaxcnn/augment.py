"""Random changes to a batch of training pictures: pure functions of a key, run on the device inside the step.

The order is fixed: flip, crop and resize in one resampling, then colour, erasing, and mixing of pairs.
Whatever is off costs nothing. Two things make the rest cheap on a CPU (figures for 128 pictures of 64x64):

- The planes of the three colours are kept apart until the end, so that the innermost loops run along whole rows:
  the colours change in 0.6 ms rather than 2, and turning the pictures there and back takes 0.6 ms.
- A random number for each pixel takes 26 ms, so each example draws a handful and the noise is shared by a batch.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from scipy.special import betaincinv

from jaxcnn.config import AugmentConfig
from jaxcnn.ops.barrier import materialize

CROP_ASPECT = 4 / 3
"""Largest ratio of the sides of a random resized crop (Szegedy et al. 2015)."""
ERASED_AREA = (0.02, 0.4)
"""Smallest and largest share of the picture that is erased (Zhong et al. 2017)."""
ERASED_ASPECT = 1 / 0.3
"""Largest ratio of the sides of an erased rectangle (Zhong et al. 2017)."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the gray of a colour (ITU-R BT.601)."""
BETA_QUANTILES = 4096
"""Different values that the share of a mixed picture can take."""

type Planes = Float[Array, "batch 3 side side"]
type Targets = Float[Array, "batch classes"]
type PerExample = Float[Array, " batch"]


def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    *,
    config: AugmentConfig,
    classes: int,
    resolution: int,
) -> tuple[Float[Array, "batch {resolution} {resolution} 3"], Float[Array, "batch {classes}"]]:
    """Pictures in [0, 255] at the resolution of the step, and the probability of each class.

    With everything off and the resolution that of the pictures, the pictures are unchanged.
    """
    geometry_key, colour_key, erase_key, mix_key = jax.random.split(key, 4)
    x = materialize(images.transpose(0, 3, 1, 2).astype(jnp.float32))
    if config.flip or config.pad_crop > 0 or config.crop_scale is not None or resolution != x.shape[2]:
        x = materialize(_resample(geometry_key, x, config=config, resolution=resolution))
    if config.brightness > 0 or config.contrast > 0 or config.saturation > 0:
        x = materialize(_jitter_colour(colour_key, x, config=config))
    if config.erase > 0:
        x = materialize(_erase(erase_key, x, chance=config.erase))
    targets = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if config.mixup > 0 or config.cutmix > 0:
        x, targets = _mix(mix_key, x, targets, mixup=config.mixup, cutmix=config.cutmix)
    return x.transpose(0, 2, 3, 1), targets


def _resample(
    key: Key[Array, ""], x: Planes, *, config: AugmentConfig, resolution: int
) -> Float[Array, "batch 3 {resolution} {resolution}"]:
    """Flips, crops, shifts and resizes at once: one matrix for the rows of each picture and one for its columns.

    A whole number of pixels is shifted, so that a crop at the pictures' own resolution copies pixels exactly.
    """
    batch, _, side, _ = x.shape
    flip_key, box_key, place_key, shift_key = jax.random.split(key, 4)
    start, size = jnp.zeros((batch, 2)), jnp.full((batch, 2), float(side))
    if config.crop_scale is not None:
        size = side * _random_sides(box_key, batch, area=config.crop_scale, aspect=CROP_ASPECT)
        start = jax.random.uniform(place_key, (batch, 2)) * (side - size)
    if config.pad_crop > 0:
        most = min(round(config.pad_crop * side), side - 1)  # as far as a single reflection reaches
        start = start + jax.random.randint(shift_key, (batch, 2), -most, most + 1).astype(jnp.float32)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key, 0.5, (batch,))
        left, width = start[:, 1], size[:, 1]
        start = start.at[:, 1].set(jnp.where(flipped, left + width, left))
        size = size.at[:, 1].set(jnp.where(flipped, -width, width))
    reflect = config.pad_crop > 0
    rows = _resize_matrices(start[:, 0], size[:, 0], side=side, resolution=resolution, reflect=reflect)
    columns = _resize_matrices(start[:, 1], size[:, 1], side=side, resolution=resolution, reflect=reflect)
    x = jnp.einsum("bcyx,bqx->bcyq", x, columns, precision=lax.Precision.HIGHEST)
    x = jnp.einsum("bry,bcyq->bcrq", rows, x, precision=lax.Precision.HIGHEST)
    return jnp.clip(x, 0, 255)  # rounding takes some pixels just outside


def _resize_matrices(
    start: PerExample, size: PerExample, *, side: int, resolution: int, reflect: bool
) -> Float[Array, "batch {resolution} {side}"]:
    """What each pixel of a picture's side counts in each pixel of its crop, by antialiased bilinear interpolation.

    Args:
      start: where the crop begins, in pixels.
      size: its length in pixels; negative runs backwards, as a mirrored picture does.
      side: pixels of the picture.
      resolution: pixels of the resized crop.
      reflect: what lies outside the picture is its mirror image; otherwise it does not count.
    """
    scale = (size / resolution)[:, None, None]
    centre = start[:, None, None] + (jnp.arange(resolution, dtype=jnp.float32) + 0.5)[None, :, None] * scale - 0.5
    pixel = jnp.arange(side, dtype=jnp.float32)[None, None, :]
    reach = jnp.maximum(jnp.abs(scale), 1)  # when shrinking, the triangle widens to cover all pixels

    def triangle(position: Float[Array, "1 1 side"]) -> Float[Array, "batch resolution side"]:
        return jnp.maximum(1 - jnp.abs(centre - position) / reach, 0)

    weight = triangle(pixel)
    if reflect:  # each pixel but the outermost also shows up beyond the edge, as far out as it lies inside
        weight += jnp.where(pixel > 0, triangle(-pixel), 0)
        weight += jnp.where(pixel < side - 1, triangle(2 * (side - 1) - pixel), 0)
    return weight / weight.sum(-1, keepdims=True)


def _random_sides(
    key: Key[Array, ""], batch: int, *, area: tuple[float, float], aspect: float
) -> Float[Array, "batch 2"]:
    """Height and width of random rectangles as shares of the picture's sides.

    The area is uniform. The logarithm of the aspect ratio is uniform too, between those that the picture can hold,
    which makes the usual drawing again and again unnecessary.
    """
    area_key, aspect_key = jax.random.split(key)
    share = jax.random.uniform(area_key, (batch,), minval=area[0], maxval=area[1])
    widest = jnp.minimum(math.log(aspect), -jnp.log(share))
    ratio = jnp.exp(widest * jax.random.uniform(aspect_key, (batch,), minval=-1.0))
    return jnp.minimum(jnp.sqrt(jnp.stack([share * ratio, share / ratio], axis=-1)), 1)


def _jitter_colour(key: Key[Array, ""], x: Planes, *, config: AugmentConfig) -> Planes:
    """Scales brightness, then contrast about the mean gray, then saturation about each pixel's gray."""
    factors = jax.random.uniform(key, (3, len(x)), minval=-1.0)
    limits = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (
        (1 + limit * factor)[:, None, None, None] for limit, factor in zip(limits, factors, strict=True)
    )
    mean = _gray(x.mean((2, 3), keepdims=True)) * brightness
    x = mean + (x * brightness - mean) * contrast
    gray = _gray(x)
    return jnp.clip(gray + (x - gray) * saturation, 0, 255)


def _gray(x: Float[Array, "batch 3 height width"]) -> Float[Array, "batch 1 height width"]:
    red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(LUMA))
    return red + green + blue


def _erase(key: Key[Array, ""], x: Planes, *, chance: float) -> Planes:
    """Fills a random rectangle of some pictures with noise (Zhong et al. 2017).

    The noise is one picture for the whole batch, of which each rectangle shows the part at its own place.
    """
    batch, _, side, _ = x.shape
    chance_key, sides_key, place_key, noise_key = jax.random.split(key, 4)
    size = jnp.maximum(jnp.round(side * _random_sides(sides_key, batch, area=ERASED_AREA, aspect=ERASED_ASPECT)), 1)
    start = jnp.floor(jax.random.uniform(place_key, (batch, 2)) * (side - size + 1))
    inside = _rectangles(start, start + size, side=side)
    erased = inside & jax.random.bernoulli(chance_key, chance, (batch,))[:, None, None, None]
    noise = jax.random.uniform(noise_key, (1, 3, side, side), maxval=255.0)
    return jnp.where(erased, noise, x)


def _mix(key: Key[Array, ""], x: Planes, targets: Targets, *, mixup: float, cutmix: float) -> tuple[Planes, Targets]:
    """Mixes each picture and its target with those of the one before it in the batch.

    Mixup blends the two (Zhang et al. 2018). CutMix pastes a rectangle (Yun et al. 2019), and the target follows the
    area really pasted, which the picture's border may have cut. Where both are on, each batch draws one of them.

    Args:
      mixup: parameter of the Beta distribution of the share of the first picture; 0 is off.
      cutmix: the same.
    """
    batch, _, side, _ = x.shape
    choice_key, share_key, centre_key = jax.random.split(key, 3)
    pastes = jax.random.bernoulli(choice_key, 0.5) if mixup > 0 and cutmix > 0 else jnp.array(cutmix > 0)
    quantiles = jnp.where(pastes, _beta_quantiles(cutmix or mixup), _beta_quantiles(mixup or cutmix))
    share = jax.random.choice(share_key, quantiles, (batch,))
    size = side * jnp.sqrt(1 - share)[:, None]
    start = jnp.round(side * jax.random.uniform(centre_key, (batch, 2)) - size / 2)
    outside = ~_rectangles(start, start + jnp.round(size), side=side)
    kept = jnp.where(pastes, outside.astype(jnp.float32), share[:, None, None, None])
    kept_share = kept.mean((1, 2, 3))[:, None]
    mixed = jnp.clip(x * kept + jnp.roll(x, 1, axis=0) * (1 - kept), 0, 255)
    return mixed, targets * kept_share + jnp.roll(targets, 1, axis=0) * (1 - kept_share)


def _beta_quantiles(concentration: float) -> Float[np.ndarray, " quantiles"]:
    """Equally likely values of Beta(c, c). `jax.random.beta` takes seconds to compile."""
    probability = (np.arange(BETA_QUANTILES) + 0.5) / BETA_QUANTILES
    quantiles: np.ndarray = betaincinv(concentration, concentration, probability)
    return quantiles.astype(np.float32)


def _rectangles(
    start: Float[Array, "batch 2"], stop: Float[Array, "batch 2"], *, side: int
) -> Bool[Array, "batch 1 {side} {side}"]:
    """True inside the rectangles from `start` up to but without `stop`, given as rows and columns."""
    pixel = jnp.arange(side, dtype=jnp.float32)[None]
    rows = (pixel >= start[:, :1]) & (pixel < stop[:, :1])
    columns = (pixel >= start[:, 1:]) & (pixel < stop[:, 1:])
    return rows[:, None, :, None] & columns[:, None, None, :]
