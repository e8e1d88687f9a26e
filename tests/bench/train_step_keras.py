"""Keras' step for `tests.bench.train_step`: the original code's network, optimizer and loss."""

import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers


def make_step(model: str, *, batch: int, resolution: int, classes: int) -> Callable[[], None]:
    """`train_on_batch` of the original network; the residual network was never Keras code."""
    if model != "seed":
        raise ImportError("only the original network is Keras code")
    network = seed(resolution, classes)
    network.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    pictures = rng.random((batch, resolution, resolution, 3), np.float32)
    labels = rng.integers(0, classes, batch)

    def step() -> None:
        network.train_on_batch(pictures, labels)

    return step


def seed(resolution: int, classes: int) -> keras.Model:
    """The original network."""

    def conv_norm_act(x: object, channels: int, kernel: int) -> object:
        x = layers.Conv2D(channels, kernel, padding="same")(x)
        return layers.LeakyReLU()(layers.BatchNormalization()(x))

    pictures = x = keras.Input((resolution, resolution, 3))
    for _ in range(4):
        x = conv_norm_act(x, 32, 2)
    x = layers.AveragePooling2D(2)(x)
    for width in (64, 128):
        x = conv_norm_act(layers.SpatialDropout2D(0.1)(x), width, 3)
        for _ in range(2):
            x = conv_norm_act(layers.Conv2D(width // 2, 1)(x), width, 3)
            x = conv_norm_act(x, width, 1)
        x = layers.AveragePooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    for width, dropout in ((600, 0.35), (400, 0.2)):
        x = layers.LeakyReLU()(layers.BatchNormalization()(layers.Dense(width)(x)))
        x = layers.Dropout(dropout)(x)
    return keras.Model(pictures, layers.Dense(classes, activation="softmax")(x))
