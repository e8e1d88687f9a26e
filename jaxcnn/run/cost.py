"""What a training cost: time on its machine, and arithmetic, which is the same on any."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import models
from jaxcnn.config import Config, ModelConfig
from jaxcnn.run.describe import counted
from jaxcnn.run.metrics_log import RunLog
from jaxcnn.run.sessions import Session
from jaxcnn.state import init_variables


def describe_time(log: RunLog, sessions: Sequence[Session]) -> str:
    """How long the steps of a run took, in all its sessions, and what that is in core-hours or device-hours.

    Args:
      sessions: of that run, all with their environment.
    """
    total, hours = 0.0, dict[tuple[str, str], float]()
    for each in sessions:
        count, unit, name = _billed(each.environment)
        seconds = log.seconds(each.config.batch_size, start=each.start, end=each.end)
        total += seconds
        hours[unit, name] = hours.get((unit, name), 0) + seconds * count / 3600
    told = {machine: f"{each:.3g}" for machine, each in hours.items() if each}
    terms = [f"{each} {unit if each == '1' else unit + 's'} on {name}" for (unit, name), each in told.items()]
    return f"{format_duration(total)} in training steps, {' and '.join(terms)}; evaluation not counted"


def _billed(environment: Mapping[str, str]) -> tuple[int, str, str]:
    """How many hours an hour costs, of what, and on which machine."""
    devices, cores = environment["devices"].split(", "), int(environment["cores"])
    if set(devices) == {"cpu"}:
        return cores, "core-hour", f"{counted(cores, 'core')} of {environment['processor']}"
    return len(devices), "device-hour", environment["devices"]


def describe_arithmetic(config: Config, log: RunLog, *, classes: int) -> str:
    """The floating point operations of a run, and how they were counted."""
    model = dataclasses.replace(config.model, inference_side=None)
    total, terms = 0, []
    for side, pictures in pictures_by_side(config, log).items():
        flops = picture_flops(model, classes=classes, side=side)
        total += 3 * flops * pictures
        terms.append(f"{pictures:,} pictures of {side}x{side} pixels at {flops / 1e6:,.2f} million each")
    mantissa, exponent = f"{total:.2e}".split("e")
    return (
        f"{mantissa}e{int(exponent)} floating point operations: {' and '.join(terms)} forward (convolutions "
        "and dense layers), times 3 for the gradients"
    )


def picture_flops(config: ModelConfig, *, classes: int, side: int) -> int:
    """Floating point operations of the network's convolutions and dense layers for one picture, forward.

    A multiplication and an addition are two; those with the padding's zeros are counted. It is the plain network that
    is counted, whatever kernels it is run on.
    """
    model = models.build(config, classes=classes)
    variables = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=side), jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)  # type: ignore[no-untyped-call]
    traced = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False))(variables, picture)
    return _flops(traced.jaxpr)


def _flops(jaxpr: Any) -> int:
    """Operations of the convolutions and matrix products in a jaxpr and those that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            total += 2 * equation.outvars[0].aval.size * _terms(equation)
        for inner in equation.params.values():
            total += _flops(inner) if hasattr(inner, "eqns") else 0
    return total


def _terms(equation: Any) -> int:
    """How many products are summed up in each number of a convolution's or a matrix product's result."""
    shape: tuple[int, ...] = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (_, contracted), _ = numbers
        return math.prod(shape[axis] for axis in contracted)
    outputs: int = shape[numbers.rhs_spec[0]]
    return math.prod(shape) // outputs


def pictures_by_side(config: Config, log: RunLog) -> dict[int, int]:
    """How many pictures a run has seen at each resolution, those seen again counted again."""
    return {side: steps * config.batch_size for side, steps in log.steps_by_resolution(config.resolution).items()}


def format_duration(seconds: float) -> str:
    """Such as `41 s`, `3 min 12 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
