"""Learning rate schedule and optimizer of a run, from its settings."""

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
"""Adam's epsilon, Keras' default, which the original system used."""


def make_schedule(config: OptimConfig, *, steps: int) -> optax.Schedule:
    """Makes the learning rate schedule of a run.

    In a warm-up of w steps, step t has (t + 1) / (w + 1) of the highest learning rate, so that even the first one
    learns. From step w on the schedules differ; all but the first reach zero just after the last step:

    - `constant`: stays at the highest rate.
    - `linear`: falls on a line.
    - `cosine`: falls on a half cosine (Loshchilov and Hutter 2017).
    - `onecycle`: rises and falls on half cosines (after Smith and Topin 2017).

    Args:
      config: schedule, highest learning rate, and warm-up as a share of the steps.
      steps: number of steps of the whole run.

    Returns:
      A function from the step, counted from 0, to the learning rate, float32.
    """
    warmup = round(config.warmup * steps)
    falling = max(steps - warmup, 1)

    def schedule(step: Any) -> Float[Array, ""]:
        # Shares of the highest rate: `rise` goes to 1 in the warm-up, `fall` from 1 to 0 after it.
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
    """Maps 0 to 0 and 1 to 1, flat at both ends."""
    return (1 - jnp.cos(jnp.pi * share)) / 2


@functools.cache
def make_optimizer(
    config: OptimConfig, *, steps: int, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Makes the optimizer of a run: gradient clipping, then one of these rules, at the rate of `make_schedule`.

    - `sgd`: Nesterov's momentum (Sutskever et al. 2013); weight decay is added to the gradient.
    - `adam`: as in Keras (Kingma and Ba 2015), but epsilon is added after the bias correction, which changes updates by
      about epsilon; weight decay is added to the gradient.
    - `adamw`: weight decay is decoupled from the gradient and scaled by the learning rate (Loshchilov and Hutter 2019).
    - `muon`: the momentum of each kernel is made orthogonal (Jordan et al. 2024); Adam for all else. Updates are about
      as large as AdamW's, so the same learning rates and weight decays suit.

    Weight decay applies to the kernels of convolutions and dense layers only.

    Args:
      config: rule, momentum, weight decay, clipping norm, and the schedule.
      steps: number of steps of the whole run.
      schedule: learning rate by step; None: that of the settings.

    Returns:
      An optimizer. Equal arguments return the same object, so a step compiled for it is found in the cache.
    """
    schedule = schedule or make_schedule(config, steps=steps)
    # Clipping comes first in the chain: it is the gradients that are clipped, not the updates.
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
    """Makes an optimizer work under strict type promotion: Optax raises floats to integer powers."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _kernels(params: optax.Params) -> Any:
    """A tree of booleans: true for the kernels of convolutions and dense layers, false for all other parameters."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)
