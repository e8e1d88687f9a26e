"""The learning rate over time, and the optimizer, from the settings of a run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxcnn.config import OptimConfig
from jaxcnn.muon import scale_by_muon

ADAM_DECAY = 0.999
"""Decay of Adam's second moment, Keras' default."""
ADAM_EPSILON = 1e-7
"""Keras' default, which the original system used."""


def make_schedule(config: OptimConfig, *, steps: int) -> optax.Schedule:
    """The learning rate at each step, counted from 0, of a run of `steps` steps.

    Of w warm-up steps, step t has the share (t + 1) / (w + 1) of the highest rate, so that not even the first is
    wasted. From step w on the rate falls and reaches zero at step `steps`, just after the last; `constant` stays.
    `onecycle` takes a half cosine both ways (after Smith and Topin 2017).
    """
    warmup = round(config.warmup * steps)
    falling = max(steps - warmup, 1)

    def schedule(step: Any) -> Float[Array, ""]:
        count = jnp.asarray(step).astype(jnp.float32)
        rise = jnp.minimum((count + 1) / (warmup + 1), 1)
        fall = 1 - jnp.clip((count - warmup) / falling, 0, 1)
        match config.schedule:
            case "constant":
                share = rise
            case "linear":
                share = rise * fall
            case "cosine":
                share = rise * _half_cosine(fall)
            case "onecycle":
                share = _half_cosine(rise) * _half_cosine(fall)
        return config.learning_rate * share

    return schedule


def _half_cosine(share: Float[Array, ""]) -> Float[Array, ""]:
    """From 0 at 0 to 1 at 1, flat at both ends."""
    return (1 - jnp.cos(jnp.pi * share)) / 2


@functools.cache
def make_optimizer(config: OptimConfig, *, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps: clipping first, then the rule, at the rate of `make_schedule`.

    Equal settings give the very same object, so a function that was compiled for it is found again.

    - sgd: Nesterov's momentum (Sutskever et al. 2013), decay added to the gradient.
    - adam: as in Keras but for where epsilon is added (after the bias correction; the difference is of its size).
    - adamw: decoupled decay, scaled by the rate (Loshchilov and Hutter 2019).
    - muon: the momentum of each kernel is made orthogonal (Jordan et al. 2024), Adam for the rest. Its updates have the
      size of AdamW's, so rate and decay are chosen as for that.
    """
    schedule = make_schedule(config, steps=steps)
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    decay = optax.add_decayed_weights(config.weight_decay, mask=_kernels)
    adam = {"b1": config.momentum, "b2": ADAM_DECAY, "eps": ADAM_EPSILON}
    match config.name:
        case "sgd":
            rule = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum, nesterov=True))
        case "adam":
            rule = optax.chain(decay, optax.adam(schedule, **adam))
        case "adamw":
            rule = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_kernels, **adam)
        case "muon":
            kernels = optax.chain(
                scale_by_muon(config.momentum),
                optax.add_decayed_weights(config.weight_decay),
                optax.scale_by_learning_rate(schedule),
            )
            rule = optax.partition({True: kernels, False: optax.adam(schedule, **adam)}, _kernels)
    return _with_standard_promotion(optax.chain(*clip, rule))


def _with_standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Lets a program that asks for strict promotion use it: Optax raises floats to whole numbers of steps."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _kernels(params: optax.Params) -> Any:
    """True for the kernels of convolutions and dense layers, false for biases and normalisations."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
