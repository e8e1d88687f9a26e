"""Each augmentation by its distribution over many examples, its targets, and what it must leave alone."""

import itertools
import typing
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxcnn.augment import augment
from jaxcnn.config import AugmentConfig
from jaxcnn.ops.dispatch import use_cpu_kernels

CLASSES = 7
EVERYTHING = AugmentConfig(
    flip=True,
    pad_crop=0.1,
    crop_scale=(0.3, 1.0),
    erase=0.5,
    mixup=0.4,
    cutmix=1.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
)


@cache
def compiled(config: AugmentConfig, resolution: int) -> typing.Any:
    function = jax.jit(partial(augment, config=config, classes=CLASSES, resolution=resolution))

    def run_with_kernels(*arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        with use_cpu_kernels(True):
            return function(*arguments)

    return run_with_kernels


def run(images: np.ndarray, *, seed: int = 0, resolution: int | None = None, **settings: typing.Any) -> tuple:
    """Pictures and targets as NumPy arrays."""
    function = compiled(AugmentConfig(**settings), resolution or images.shape[1])
    return tuple(map(np.asarray, function(jax.random.key(seed), jnp.asarray(images), labels(len(images)))))


def labels(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32) % CLASSES


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def repeated(count: int, side: int) -> np.ndarray:
    return np.repeat(pictures(1, side), count, axis=0)


def constant(count: int, side: int, values: np.ndarray | int) -> np.ndarray:
    return np.broadcast_to(np.reshape(values, (-1, 1, 1, 1)), (count, side, side, 3)).astype(np.uint8)


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    assert values.min() >= low - 1e-3
    assert values.max() <= high + 1e-3
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-4


def assert_one_hot(targets: np.ndarray) -> None:
    np.testing.assert_array_equal(targets, np.eye(CLASSES, dtype=np.float32)[np.asarray(labels(len(targets)))])


def test_off_is_the_identity() -> None:
    images = pictures(3, 8)
    found, targets = run(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images)
    assert_one_hot(targets)


def test_everything_keeps_range_and_shape() -> None:
    config = vars(EVERYTHING)
    found, targets = run(pictures(32, 16), resolution=12, **config)
    assert found.shape == (32, 12, 12, 3)
    assert found.dtype == targets.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    assert targets.min() >= 0


def test_the_key_decides_and_examples_differ() -> None:
    images, config = repeated(32, 16), vars(EVERYTHING)
    first, again, other = (run(images, seed=seed, resolution=12, **config) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert len(np.unique(first[0].reshape(32, -1), axis=0)) == 32


def test_random_numbers_are_few() -> None:
    """A random number for each pixel of each example would take too long on a CPU."""
    images = jnp.zeros((256, 16, 16, 3), jnp.uint8)
    function = partial(augment, config=EVERYTHING, classes=CLASSES, resolution=16)
    jaxpr = str(jax.make_jaxpr(function)(jax.random.key(0), images, labels(256)))
    drawn = [line for line in jaxpr.splitlines() if "random_bits" in line]
    assert drawn
    assert not any("[256,3,16,16]" in line or "[256,16,16" in line for line in drawn)


def test_flip_mirrors_half_of_the_pictures() -> None:
    images = repeated(1000, 8)
    found, targets = run(images, flip=True)
    same, mirrored = (found == images).all((1, 2, 3)), (found == images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 0.44 < mirrored.mean() < 0.56
    assert_one_hot(targets)


def test_pad_crop_copies_every_window_of_the_reflected_picture() -> None:
    images = repeated(2000, 8)
    found, targets = run(images, pad_crop=0.2)  # 1.6 pixels, rounded
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    counts = [
        (found == padded[row : row + 8, column : column + 8]).all((1, 2, 3)).sum()
        for row, column in itertools.product(range(5), repeat=2)
    ]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > 1e-4
    assert_one_hot(targets)


def test_a_shifted_picture_is_interpolated_with_its_reflection() -> None:
    images = repeated(200, 8)
    found, _ = run(images, pad_crop=0.25, resolution=12)
    line = (np.arange(12) + 0.5) * 8 / 12 - 0.5
    windows = [
        ndimage.map_coordinates(
            images[0].astype(float),
            np.meshgrid(line + row, line + column, range(3), indexing="ij"),
            order=1,
            mode="mirror",
        )
        for row, column in itertools.product(range(-2, 3), repeat=2)
    ]
    assert np.abs(found[:, None] - np.stack(windows)).max((2, 3, 4)).min(1).max() < 1e-2


def test_pad_crop_of_almost_the_whole_side_stays_finite() -> None:
    found, _ = run(repeated(500, 8), pad_crop=0.99)
    assert np.isfinite(found).all()
    assert set(np.unique(found)) <= set(np.unique(repeated(1, 8)))


@pytest.mark.parametrize("resolution", [8, 12, 24])
def test_resizing_is_antialiased_bilinear(resolution: int) -> None:
    images = pictures(2, 16)
    found, _ = run(images, resolution=resolution)
    expected = jax.image.resize(images.astype(np.float32), (2, resolution, resolution, 3), "linear", antialias=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_resizing_keeps_the_range() -> None:
    found, _ = run(constant(4, 64, 255), resolution=48)
    assert found.max() <= 255


def test_crops_are_the_same_without_cpu_kernels() -> None:
    images, config = pictures(8, 16), AugmentConfig(flip=True, pad_crop=0.2, crop_scale=(0.3, 1.0))
    found, _ = run(images, resolution=12, flip=True, pad_crop=0.2, crop_scale=(0.3, 1.0))
    function = jax.jit(partial(augment, config=config, classes=CLASSES, resolution=12))
    plain, _ = function(jax.random.key(0), jnp.asarray(images), labels(8))
    np.testing.assert_allclose(found, plain, atol=1e-2)


def test_flip_and_resizing_go_together() -> None:
    images = repeated(32, 16)
    plain, _ = run(images[:1], resolution=12)
    found, _ = run(images, resolution=12, flip=True)
    same = np.abs(found - plain).max((1, 2, 3)) < 1e-3
    mirrored = np.abs(found - plain[:, :, ::-1]).max((1, 2, 3)) < 1e-3
    assert np.all(same ^ mirrored)
    assert same.any()
    assert mirrored.any()


def crops(count: int, **settings: typing.Any) -> tuple[np.ndarray, ...]:
    """Top, left, height and width of random crops, as shares of the side, read from pictures of coordinates."""
    side = 32
    images = np.zeros((count, side, side, 3), np.uint8)
    images[..., 0] = 8 * np.arange(side)[:, None]
    images[..., 1] = 8 * np.arange(side)
    found, targets = run(images, **settings)
    assert_one_hot(targets)
    rows, columns = found[:, :, 0, 0] / 8, found[:, 0, :, 1] / 8
    spacing = [(line[:, 20] - line[:, 10]) / 10 for line in (rows, columns)]
    first = [line[:, 15] - 15.5 * step + 0.5 for line, step in zip((rows, columns), spacing, strict=True)]
    return first[0] / side, first[1] / side, spacing[0], spacing[1]


def test_resized_crops_are_uniform_in_area_and_place() -> None:
    top, left, height, width = crops(2000, crop_scale=(0.2, 0.7))
    assert_uniform(height * width, 0.2, 0.7)
    places = [start / (1 - size) for start, size in ((top, height), (left, width))]
    for place in places:
        assert_uniform(place, 0, 1)
    aspect = np.log(width / height)
    assert np.abs(aspect).max() <= np.log(4 / 3) + 1e-3
    assert abs(aspect.mean()) < 0.02
    assert np.abs(np.corrcoef(*places)[0, 1]) < 0.1


def test_a_crop_is_shifted_whatever_its_place() -> None:
    """The variances of place and shift add up."""
    top, left, height, width = crops(2000, crop_scale=(0.25, 0.25), pad_crop=0.1)  # Up to 3 of 32 pixels.
    for start, size in ((top, height), (left, width)):
        expected = ((1 - size) ** 2).mean() / 12 + 4 / 32**2
        assert (start - (1 - size) / 2).var() == pytest.approx(expected, rel=0.1)


def test_resized_crops_of_the_whole_area_change_nothing() -> None:
    images = pictures(4, 8)
    found, _ = run(images, crop_scale=(1.0, 1.0))
    np.testing.assert_allclose(found, images, atol=1e-2)


def rectangles(changed: np.ndarray) -> np.ndarray:
    """Heights and widths of the true areas of masks, which must be rectangles."""
    rows, columns = changed.any(2), changed.any(1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        edges = np.abs(np.diff(line.astype(int), axis=1, prepend=0, append=0)).sum(1)
        assert np.all(edges <= 2)
    return np.stack([rows.sum(1), columns.sum(1)], axis=1)


def test_erasing_fills_a_rectangle_of_some_pictures() -> None:
    side = 32
    found, targets = run(constant(2000, side, 0), erase=0.3)
    erased = found.any(-1)
    sizes = rectangles(erased)[erased.any((1, 2))]
    assert 0.26 < len(sizes) / 2000 < 0.34
    area = sizes.prod(1) / side**2
    assert area.min() > 0.01
    assert area.max() < 0.43
    assert abs(area.mean() - 0.21) < 0.02
    aspect = np.log(sizes[:, 0] / sizes[:, 1])
    assert np.abs(aspect).max() < np.log(1 / 0.3) + 0.3
    assert abs(aspect.mean()) < 0.1
    centre = np.argwhere(erased).mean(0)[1:]
    np.testing.assert_allclose(centre, (side - 1) / 2, atol=1)
    assert_one_hot(targets)


def test_which_are_erased_does_not_depend_on_which_are_mirrored() -> None:
    images = repeated(1000, 8)
    found, _ = run(images, flip=True, erase=0.5)
    same, mirrored = ((found == source).mean((1, 2, 3)) for source in (images, images[:, :, ::-1]))
    erased = np.maximum(same, mirrored) < 1
    assert 0.4 < erased[mirrored > same].mean() < 0.6
    assert 0.4 < erased[mirrored < same].mean() < 0.6


def test_erased_pixels_are_uniform_noise() -> None:
    found, _ = run(constant(500, 32, 0), erase=1.0)
    noise = np.unique(found[found > 0])
    assert_uniform(noise / 255, 0, 1)
    every, _ = run(constant(500, 32, 0), erase=1.0, seed=1)
    assert not np.isin(noise, every).any()


def test_mixup_blends_neighbours_as_much_as_their_targets() -> None:
    count, concentration = 2100, 0.4
    values = np.where(np.arange(count) % 2, 200, 0)
    found, targets = run(constant(count, 4, values), mixup=concentration)
    assert np.all(np.ptp(found, (1, 2, 3)) < 1e-3)
    first = np.arange(count)
    kept = targets[first, first % CLASSES]
    before = targets[first, (first - 1) % CLASSES]
    np.testing.assert_allclose(kept + before, 1, rtol=1e-5)
    expected = kept * values + (1 - kept) * np.roll(values, 1)
    np.testing.assert_allclose(found[:, 0, 0, 0], expected, atol=1e-2)
    assert stats.kstest(kept, stats.beta(concentration, concentration).cdf).pvalue > 1e-4
    assert abs(kept.mean() - 0.5) < 0.03
    assert kept.var() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.05)


def test_cutmix_targets_are_the_share_of_pixels() -> None:
    count, side = 2100, 16
    values = np.arange(count) % 2
    found, targets = run(constant(count, side, values), cutmix=1.0)
    pasted = found[..., 0] != values[:, None, None]
    sizes = rectangles(pasted)
    np.testing.assert_array_equal(
        found[..., 0], np.where(pasted, np.roll(values, 1)[:, None, None], values[:, None, None])
    )
    first = np.arange(count)
    share = pasted.mean((1, 2))
    np.testing.assert_allclose(targets[first, first % CLASSES], 1 - share, atol=1e-6)
    np.testing.assert_allclose(targets[first, (first - 1) % CLASSES], share, atol=1e-6)
    # The side cut out is sqrt(1 - l) with l uniform; kept inside the picture it is s - s^2 / 4 on average.
    squares = sizes[:, 0] == sizes[:, 1]
    assert 0.2 < squares.mean() < 0.9  # The border crops many.
    side_share = np.sqrt(np.linspace(0, 1, 1001))
    assert sizes.mean() / side == pytest.approx((side_share - side_share**2 / 4).mean(), rel=0.05)


def test_mixup_and_cutmix_take_turns_by_batch() -> None:
    images = constant(16, 8, np.where(np.arange(16) % 2, 200, 0))
    pastes = []
    for seed in range(60):
        found, targets = run(images, seed=seed, mixup=1.0, cutmix=1.0)
        pure = (np.isin(found, (0, 200))).all()
        flat = np.all(np.ptp(found, (1, 2, 3)) < 1e-3)
        assert pure or flat
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
        pastes.append(pure)
    assert 15 < sum(pastes) < 45


def test_brightness_scales_each_picture() -> None:
    found, targets = run(constant(2000, 4, 100), brightness=0.4)
    assert np.all(np.ptp(found, (1, 2, 3)) < 1e-3)
    assert_uniform(found[:, 0, 0, 0] / 100, 0.6, 1.4)
    assert_one_hot(targets)
    clipped, _ = run(constant(200, 4, 250), brightness=0.4)
    assert clipped.max() == 255


def gray(images: np.ndarray) -> np.ndarray:
    return images @ np.array([0.299, 0.587, 0.114])


def test_contrast_scales_about_the_mean_gray() -> None:
    images = 100 + repeated(1000, 4) // 8
    found, _ = run(images, contrast=0.5)
    mean = gray(images).mean((1, 2))
    np.testing.assert_allclose(gray(found).mean((1, 2)), mean, rtol=1e-4)
    centred = (found - mean[:, None, None, None]).reshape(1000, -1)
    original = (images - mean[:, None, None, None]).reshape(1000, -1)
    factor = (centred * original).sum(1) / (original**2).sum(1)
    np.testing.assert_allclose(centred, factor[:, None] * original, atol=1e-2)
    assert_uniform(factor, 0.5, 1.5)


def test_saturation_scales_about_each_gray() -> None:
    images = 100 + repeated(1000, 4) // 8
    found, _ = run(images, saturation=0.5)
    np.testing.assert_allclose(gray(found), gray(images), rtol=1e-4)
    factor = (found[:, 0, 0] - gray(images)[:, 0, 0, None]) / (images[:, 0, 0] - gray(images)[:, 0, 0, None])
    np.testing.assert_allclose(factor, factor[:, :1] * np.ones((1, 3)), rtol=1e-2)
    assert_uniform(factor[:, 0], 0.5, 1.5)
    unchanged, _ = run(constant(4, 4, 77), saturation=0.5)
    np.testing.assert_allclose(unchanged, 77, rtol=1e-5)


# Pictures that are stored larger than they are shown


def shown(images: np.ndarray, side: int, *, resolution: int | None = None, **settings: typing.Any) -> np.ndarray:
    function = partial(augment, config=AugmentConfig(**settings), classes=CLASSES, resolution=resolution or side)
    found, _ = jax.jit(partial(function, shown=side))(jax.random.key(1), jnp.asarray(images), labels(len(images)))
    return np.asarray(found)


def test_without_random_crops_training_sees_the_middle_as_evaluation_does() -> None:
    images = pictures(4, 21)
    np.testing.assert_array_equal(shown(images, 16), images[:, 3:19, 3:19])
    halved = run(images[:, 3:19, 3:19], resolution=8)[0]
    # What is around the middle blends into its outermost pixels.
    np.testing.assert_allclose(shown(images, 16, resolution=8)[:, 1:-1, 1:-1], halved[:, 1:-1, 1:-1], atol=1e-3)


def test_shifts_show_what_is_around_the_middle() -> None:
    images = repeated(400, 20)
    found = shown(images, 16, pad_crop=2 / 16)
    counts = [
        (found == images[0, row : row + 16, column : column + 16]).all((1, 2, 3)).sum()
        for row, column in itertools.product(range(5), repeat=2)
    ]
    assert sum(counts) == 400
    assert min(counts) > 0


def test_random_resized_crops_are_taken_from_the_whole_stored_picture() -> None:
    # Of a ramp, the mean of a crop says where it was, and the range how large.
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[None, None, :, None], (300, 24, 24, 3))
    found = shown(ramp, 16, crop_scale=(0.25, 0.25))
    assert found.shape == (300, 16, 16, 3)
    assert found.min() < 5
    assert found.max() > 225
    whole = shown(ramp, 16, crop_scale=(1.0, 1.0))
    np.testing.assert_allclose(whole, run(np.array(ramp), resolution=16)[0], atol=1e-3)
