"""What a training cost: time on its machine, and arithmetic, which is the same on any."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxcnn import models
from jaxcnn.config import Config, ModelConfig
from jaxcnn.history import RunLog
from jaxcnn.state import init_variables


def describe_time(config: Config, log: RunLog, environment: Mapping[str, str]) -> str:
    """How long the steps of a run took, in all its sittings, and what that is in core-hours or device-hours.

    Args:
      environment: as `workdir.environment` records it.
    """
    seconds = log.seconds(config.batch_size)
    devices = environment["devices"].split(", ")
    if set(devices) == {"cpu"}:
        count, kind, where = int(environment["cores"]), "core", f"cores of {environment['processor']}"
    else:
        count, kind, where = len(devices), "device", environment["devices"]
    return (
        f"{format_duration(seconds)} in training steps, {seconds * count / 3600:.3g} {kind}-hours on "
        f"{f'{count} ' if kind == 'core' else ''}{where}; evaluation not counted"
    )


def describe_arithmetic(config: Config, log: RunLog, *, classes: int) -> str:
    """The floating point operations of a run, and how they were counted."""
    total, terms = 0.0, []
    for side, pictures in pictures_by_side(config, log).items():
        flops = picture_flops(config.model, classes=classes, side=side)
        total += 3 * flops * pictures
        terms.append(f"{pictures:,} pictures of {side}x{side} pixels at {flops / 1e6:,.2f} million each")
    mantissa, exponent = f"{total:.2e}".split("e")
    return (
        f"{mantissa}e{int(exponent)} floating point operations: {' and '.join(terms)} forward (XLA's cost analysis of "
        "the plain network), times 3 for the gradients"
    )


def picture_flops(config: ModelConfig, *, classes: int, side: int) -> float:
    """Floating point operations of the network for one picture, forward, by XLA's cost analysis.

    A multiplication and an addition are two. It is the plain network that is counted, whatever kernels it is run on.
    """
    model = models.build(dataclasses.replace(config, precision="float32"), classes=classes)
    variables = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=side), jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)  # type: ignore[no-untyped-call]
    lowered = jax.jit(lambda variables, images: model.apply(variables, images, train=False)).lower(variables, picture)
    cost = lowered.cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def pictures_by_side(config: Config, log: RunLog) -> dict[int, int]:
    """How many pictures a run has seen at each resolution, those seen again counted again."""
    seen: dict[int, int] = {}
    for epoch, steps in log.steps_by_epoch().items():
        side = config.resolution(epoch)
        seen[side] = seen.get(side, 0) + steps * config.batch_size
    return seen


def format_duration(seconds: float) -> str:
    """Such as `41 s`, `3 min 12 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
