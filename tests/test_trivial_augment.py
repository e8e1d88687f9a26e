"""Each operation of TrivialAugment beside Pillow's, on a photograph; and what is drawn for a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from jaxcnn import trivial_augment as module
from jaxcnn.augment import augment
from jaxcnn.config import AugmentConfig
from jaxcnn.trivial_augment import OPERATIONS, STRENGTHS, trivial_augment

SIDE = 96
PHOTO = Image.fromarray(load_sample_image("flower.jpg")).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def affine(*coefficients):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients)


def pillow(name: str, strength: float, sign: int) -> Image.Image:
    change = 0.99 * strength * sign
    shift = sign * strength * SIDE * 32 / 224
    return {
        "identity": lambda image: image,
        "auto_contrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "rotate": lambda image: image.rotate(135 * strength * sign),
        "solarize": lambda image: ImageOps.solarize(image, 255 * (1 - strength)),
        "color": lambda image: ImageEnhance.Color(image).enhance(1 + change),
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(strength * 6)),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1 + change),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1 + change),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1 + change),
        "shear_x": affine(1, change, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, change, 1, 0),
        "translate_x": affine(1, 0, shift, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, shift),
    }[name](PHOTO)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name):
    operation = jax.jit(OPERATIONS[name])
    picture = jnp.asarray(np.asarray(PHOTO).transpose(2, 0, 1))
    sampled = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    changed = 0
    for strength in (0.0, 4 / 30, 0.5, 23 / 30, 1.0):
        for sign in (1, -1):
            found = np.asarray(operation(picture, jnp.float32(strength), jnp.float32(sign))).transpose(1, 2, 0)
            expected = np.asarray(pillow(name, strength, sign)).astype(int)
            difference = np.abs(found - expected)
            # A place between two pixels, such as on the diagonals at 135 degrees, may be rounded to the other one.
            assert (difference > 1).any(-1).mean() <= (0.01 if sampled else 0), (strength, sign)
            assert difference.mean() <= (0.1 if sampled else 0.05), (strength, sign)
            changed += not np.array_equal(found, np.asarray(PHOTO))
    assert changed == 0 if name == "identity" else changed >= 7, changed


def test_flat_pictures_stay_as_they_are():
    flat = jnp.full((3, 8, 8), 77, jnp.uint8)
    for name in ("auto_contrast", "equalize"):
        assert (OPERATIONS[name](flat, jnp.float32(1), jnp.float32(1)) == 77).all()


def test_operations_strengths_and_signs_are_equally_likely(monkeypatch):
    def record(index):
        def operation(picture, strength, sign):
            values = jnp.stack([jnp.float32(index), strength * (STRENGTHS - 1), sign + 1])
            return jnp.broadcast_to(jnp.round(values)[:, None, None], picture.shape).astype(jnp.uint8)

        return operation

    monkeypatch.setattr(module, "OPERATIONS", {name: record(index) for index, name in enumerate(OPERATIONS)})
    drawn = np.asarray(trivial_augment(jax.random.key(0), jnp.zeros((7000, 3, 1, 1))))[:, :, 0, 0].astype(int)
    for values, count in ((drawn[:, 0], len(OPERATIONS)), (drawn[:, 1], STRENGTHS), (drawn[:, 2] // 2, 2)):
        counts = np.bincount(values, minlength=count)
        assert len(counts) == count
        assert abs(counts * count / 7000 - 1).max() < 0.35


@pytest.mark.run
def test_one_after_the_other_and_side_by_side_are_the_same(monkeypatch):
    pictures = jnp.asarray(np.repeat(np.asarray(PHOTO, np.float32).transpose(2, 0, 1)[None], 16, axis=0))
    alone = trivial_augment(jax.random.key(1), pictures)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    together = trivial_augment(jax.random.key(1), pictures)
    np.testing.assert_array_equal(alone, together)
    assert len(np.unique(np.asarray(alone).reshape(16, -1), axis=0)) > 8


def test_the_step_applies_it_after_the_crop():
    images = np.repeat(np.asarray(PHOTO)[None], 8, axis=0)
    found, _ = augment(
        jax.random.key(0),
        jnp.asarray(images),
        jnp.zeros(8, jnp.int32),
        config=AugmentConfig(trivial=True),
        classes=2,
        resolution=64,
        shown=64,
    )
    assert found.shape == (8, 64, 64, 3)
    expected = trivial_augment(
        jax.random.fold_in(jax.random.key(0), 4),
        jnp.asarray(images[:, 16:80, 16:80], jnp.float32).transpose(0, 3, 1, 2),
    )
    np.testing.assert_array_equal(found, expected.transpose(0, 2, 3, 1))
