"""Augmentation of a batch of training pictures: pure functions of a key, which run on the device inside the step.

The order is fixed: flip, crop and resize in one resampling; then TrivialAugment, colour jitter, random erasing, and
mixup or CutMix.
What is off costs nothing. Two measures make the rest cheap on a CPU (figures for 128 pictures of 64x64):

- The colours are separate planes, [batch, 3, height, width], until the end, so that the innermost loops run along whole
  rows: colour jitter takes 0.6 instead of 2 ms, and both transposes together 0.6 ms.
- A random number for each pixel would take 26 ms. Each example draws a handful, and a batch shares one picture of
  noise.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxcnn.config import AugmentConfig
from jaxcnn.data.crops import CROP_ASPECT
from jaxcnn.data.resize import centre
from jaxcnn.ops.barrier import materialize
from jaxcnn.ops.resample import Taps, resample
from jaxcnn.trivial_augment import trivial_augment

ERASED_AREA = (0.02, 0.4)
"""Smallest and largest share of the picture's area that is erased (Zhong et al. 2017)."""
ERASED_ASPECT = 1 / 0.3
"""Largest aspect ratio of an erased rectangle (Zhong et al. 2017)."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma, the gray of a colour (ITU-R BT.601)."""
BETA_QUANTILES = 4096
"""Number of values that the share of a mixed picture can take."""

type Planes = Float[Array, "batch 3 side side"]
type Targets = Float[Array, "batch classes"]
type PerExample = Float[Array, " batch"]


@jax.named_scope("augment")
def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "batch side side 3"],
    labels: Int[Array, " batch"],
    *,
    config: AugmentConfig,
    classes: int,
    resolution: int,
    shown: int | None = None,
) -> tuple[Float[Array, "batch {resolution} {resolution} 3"], Float[Array, "batch {classes}"]]:
    """Augments a batch. With everything off, pictures are what evaluation sees, resized to `resolution`.

    Args:
      key: all random numbers are a function of it.
      images: RGB, uint8 [batch, side, side, 3].
      labels: classes, int [batch].
      config: which augmentations, and how strong.
      classes: number of classes.
      resolution: side of the result in pixels.
      shown: side of the middle of the pictures that evaluation sees. Random resized crops are taken from the whole of
        them, and shifts move what is around the middle into it. None: all of them.

    Returns:
      Pictures in [0, 255], float32 [batch, resolution, resolution, 3], and the probability of each class that is to be
      learned for them, float32 [batch, classes].
    """
    shown = shown or images.shape[1]
    moves = config.flip or config.pad_crop > 0 or config.crop_scale is not None or resolution != shown
    if not moves:
        window = centre(images.shape[1], shown)
        images = images[:, window, window]
    geometry_key, colour_key, erase_key, mix_key = jax.random.split(key, 4)
    # Barriers keep XLA from repeating one augmentation inside the loops of the next.
    if moves:
        x = materialize(_crop(geometry_key, images, config=config, resolution=resolution, shown=shown))
    else:
        x = materialize(images.transpose(0, 3, 1, 2).astype(jnp.float32))
    if config.trivial:
        # Not one more key of the split, which would change the others.
        x = materialize(trivial_augment(jax.random.fold_in(key, 4), x))
    if config.brightness > 0 or config.contrast > 0 or config.saturation > 0:
        x = _jitter_colour(colour_key, x, config=config)
    if config.erase > 0:
        x = _erase(erase_key, x, chance=config.erase)
    x = materialize(x)
    targets = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    if config.mixup > 0 or config.cutmix > 0:
        x, targets = _mix(mix_key, x, targets, mixup=config.mixup, cutmix=config.cutmix)
    return x.transpose(0, 2, 3, 1), targets


def _crop(
    key: Key[Array, ""],
    images: UInt8[Array, "batch side side 3"],
    *,
    config: AugmentConfig,
    resolution: int,
    shown: int,
) -> Float[Array, "batch 3 {resolution} {resolution}"]:
    """Flips, crops, shifts and resizes at once: one resampling of the rows of each picture and one of its columns.

    Shifts are whole pixels, so without resizing a shifted picture has exactly the pixels of the original.
    """
    batch, side = images.shape[:2]
    flip_key, box_key, place_key, shift_key = jax.random.split(key, 4)
    # Box of each crop, in pixels: a random resized crop, or else the middle; shifted, and mirrored by a negative width.
    start = jnp.full((batch, 2), float(centre(side, shown).start))
    size = jnp.full((batch, 2), float(shown))
    if config.crop_scale is not None:
        size = side * _random_sides(box_key, batch, area=config.crop_scale, aspect=CROP_ASPECT)
        start = jax.random.uniform(place_key, (batch, 2)) * (side - size)
    if config.pad_crop > 0:
        most = min(round(config.pad_crop * shown), side - 1)  # A single reflection reaches no farther.
        start = start + jax.random.randint(shift_key, (batch, 2), -most, most + 1).astype(jnp.float32)
    if config.flip:
        flipped = jax.random.bernoulli(flip_key, 0.5, (batch,))
        left, width = start[:, 1], size[:, 1]
        start = start.at[:, 1].set(jnp.where(flipped, left + width, left))
        size = size.at[:, 1].set(jnp.where(flipped, -width, width))
    taps = partial(
        _bilinear_taps,
        side=side,
        resolution=resolution,
        longest=shown if config.crop_scale is None else side,
        reflect=config.pad_crop > 0,
    )
    return resample(images, taps(start[:, 0], size[:, 0]), taps(start[:, 1], size[:, 1]))


def _bilinear_taps(
    start: PerExample, size: PerExample, *, side: int, resolution: int, longest: int, reflect: bool
) -> Taps:
    """The taps of antialiased bilinear interpolation along one axis, from pictures to crops.

    Args:
      start: beginning of each crop, in pixels.
      size: length of each crop, in pixels; a negative one runs backwards and mirrors the picture.
      side: pixels of the picture.
      resolution: pixels of the resized crop.
      longest: upper bound of the lengths.
      reflect: continue the picture by its mirror image; otherwise pixels outside of it have no weight.
    """
    # Centre of each pixel of the crop, in the picture's pixels.
    scale = (size / resolution)[None, :, None]
    centre = start[None, :, None] + (jnp.arange(resolution, dtype=jnp.float32) + 0.5)[None, None, :] * scale - 0.5
    # When a picture shrinks, the triangle widens to cover all of its pixels.
    reach = jnp.maximum(jnp.abs(scale), 1)
    count = math.ceil(2 * max(1, longest / resolution))
    pixel = jnp.ceil(centre - reach) + jnp.arange(count, dtype=jnp.float32)[:, None, None]
    weight = jnp.maximum(1 - jnp.abs(centre - pixel) / reach, 0)
    if reflect:
        # Beyond either edge, every pixel but the outermost appears again, as far outside as it is inside.
        pixel = jnp.abs(pixel)
        pixel = jnp.minimum(pixel, 2 * (side - 1) - pixel)
    weight = jnp.where((pixel >= 0) & (pixel < side), weight, 0)
    rows = jnp.clip(pixel, 0, side - 1).astype(jnp.int32)
    return Taps(rows, weight / weight.sum(0, keepdims=True))


def _random_sides(
    key: Key[Array, ""], batch: int, *, area: tuple[float, float], aspect: float
) -> Float[Array, "batch 2"]:
    """Draws heights and widths of rectangles, as shares of the picture's sides.

    The area is uniform. The logarithm of the aspect ratio is uniform too, between the ratios that fit in the picture,
    so that no rectangle has to be rejected and drawn again.

    Args:
      key: all random numbers are a function of it.
      batch: number of rectangles.
      area: smallest and largest share of the picture's area.
      aspect: largest aspect ratio.
    """
    area_key, aspect_key = jax.random.split(key)
    share = jax.random.uniform(area_key, (batch,), minval=area[0], maxval=area[1])
    widest = jnp.minimum(math.log(aspect), -jnp.log(share))
    ratio = jnp.exp(widest * jax.random.uniform(aspect_key, (batch,), minval=-1.0))
    return jnp.minimum(jnp.sqrt(jnp.stack([share * ratio, share / ratio], axis=-1)), 1)


def _jitter_colour(key: Key[Array, ""], x: Planes, *, config: AugmentConfig) -> Planes:
    """Scales the brightness, then the contrast about the mean gray, then the saturation about each pixel's gray.

    Each factor is uniform between 1 - limit and 1 + limit, with the limits of the settings.
    """
    factors = jax.random.uniform(key, (3, len(x)), minval=-1.0)
    limits = (config.brightness, config.contrast, config.saturation)
    brightness, contrast, saturation = (
        (1 + limit * factor)[:, None, None, None] for limit, factor in zip(limits, factors, strict=True)
    )
    # The three changes as one weighted sum: pixel, gray of the pixel, and mean gray.
    gray = _gray(x)
    scale = brightness * contrast
    offset = gray.mean((2, 3), keepdims=True) * (brightness - scale)
    return jnp.clip(x * (scale * saturation) + gray * (scale - scale * saturation) + offset, 0, 255)


def _gray(x: Float[Array, "batch 3 height width"]) -> Float[Array, "batch 1 height width"]:
    red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(LUMA))
    return red + green + blue


def _erase(key: Key[Array, ""], x: Planes, *, chance: float) -> Planes:
    """Fills a random rectangle of some pictures with noise (Zhong et al. 2017).

    The batch shares one picture of noise, which each rectangle shows a part of.
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
    """Mixes each example, picture and target, with the one before it in the batch.

    Mixup blends the two (Zhang et al. 2018). CutMix pastes a rectangle (Yun et al. 2019) and weighs the targets by the
    pasted area, which the picture's border may have cropped. If both are on, each batch draws one of them.

    Args:
      key: all random numbers are a function of it.
      x: the pictures.
      targets: probabilities of their classes.
      mixup: parameter of the Beta distribution of the picture's own share in mixup; 0 is off.
      cutmix: the same for CutMix.
    """
    batch, _, side, _ = x.shape
    choice_key, share_key, centre_key = jax.random.split(key, 3)
    # The picture's own share, by the parameter of the method that this batch uses.
    pastes = jax.random.bernoulli(choice_key, 0.5) if mixup > 0 and cutmix > 0 else jnp.array(cutmix > 0)
    quantiles = jnp.where(pastes, _beta_quantiles(cutmix or mixup), _beta_quantiles(mixup or cutmix))
    share = jax.random.choice(share_key, quantiles, (batch,))
    # CutMix: a square of the other's share, at a random place, which the border may crop.
    size = side * jnp.sqrt(1 - share)[:, None]
    start = jnp.round(side * jax.random.uniform(centre_key, (batch, 2)) - size / 2)
    outside = ~_rectangles(start, start + jnp.round(size), side=side)
    # How much of each pixel is kept. Its mean weighs the targets.
    kept = jnp.where(pastes, outside.astype(jnp.float32), share[:, None, None, None])
    kept_share = kept.mean((1, 2, 3))[:, None]
    mixed = jnp.clip(x * kept + jnp.roll(x, 1, axis=0) * (1 - kept), 0, 255)
    return mixed, targets * kept_share + jnp.roll(targets, 1, axis=0) * (1 - kept_share)


def _beta_quantiles(concentration: float) -> Float[np.ndarray, " quantiles"]:
    """Equally likely values of Beta(c, c), to draw from, since `jax.random.beta` takes seconds to compile."""
    from scipy.special import betaincinv

    probability = (np.arange(BETA_QUANTILES) + 0.5) / BETA_QUANTILES
    quantiles: np.ndarray = betaincinv(concentration, concentration, probability)
    return quantiles.astype(np.float32)


def _rectangles(
    start: Float[Array, "batch 2"], stop: Float[Array, "batch 2"], *, side: int
) -> Bool[Array, "batch 1 {side} {side}"]:
    """Masks that are true in rectangles.

    Args:
      start: first row and column of each rectangle.
      stop: row and column after the last of each rectangle.
      side: height and width of the masks.
    """
    pixel = jnp.arange(side, dtype=jnp.float32)[None]
    rows = (pixel >= start[:, :1]) & (pixel < stop[:, :1])
    columns = (pixel >= start[:, 1:]) & (pixel < stop[:, 1:])
    return rows[:, None, :, None] & columns[:, None, None, :]
