"""The cost of a training: time, which depends on the machine, and arithmetic, which does not."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.config import Config, ModelConfig
from jaxcnn.run.describe import counted
from jaxcnn.run.metrics_log import RunLog
from jaxcnn.run.sessions import Session


def describe_time(log: RunLog, sessions: Sequence[Session]) -> str:
    """Describes the time of a run's training steps, also in core-hours or device-hours on each machine.

    Args:
      log: the log of the run.
      sessions: the sessions of the run; each has a recorded environment.
    """
    # Steps are billed to the machine of their session.
    total, hours = 0.0, dict[tuple[str, str], float]()
    for session in sessions:
        count, unit, machine = _billing(session.environment)
        seconds = log.seconds(session.config.batch_size, start=session.start, end=session.end)
        total += seconds
        hours[unit, machine] = hours.get((unit, machine), 0) + seconds * count / 3600
    # Machines on which no step was kept are left out.
    rounded = {key: f"{value:.3g}" for key, value in hours.items() if value}
    terms = [
        f"{number} {unit if number == '1' else unit + 's'} on {machine}" for (unit, machine), number in rounded.items()
    ]
    return f"{format_duration(total)} in training steps, {' and '.join(terms)}; evaluation not counted"


def _billing(environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Returns how many units an hour on a machine costs, the unit, and the machine's name."""
    devices, cores = environment["devices"].split(", "), int(environment["cores"])
    if set(devices) == {"cpu"}:
        return cores, "core-hour", f"{counted(cores, 'core')} of {environment['processor']}"
    return len(devices), "device-hour", environment["devices"]


def describe_expected(config: Config, seconds: float, *, first_step: int, steps_per_epoch: int) -> str:
    """Describes what the rest of a run will take, by its first steps.

    Args:
      config: the settings of the run.
      seconds: measured time of a step.
      first_step: the step, counted from 0, with which the session began.
      steps_per_epoch: full batches in an epoch.
    """
    side = config.resolution(first_step // steps_per_epoch)
    left = expected_seconds(config, seconds, side=side, step=first_step, steps_per_epoch=steps_per_epoch)
    return (
        f"a step takes {seconds:.3g} s, so the {config.epochs * steps_per_epoch - first_step:,} steps to take about "
        f"{format_duration(left)}, evaluation not counted; {describe_memory()}"
    )


def expected_seconds(config: Config, seconds: float, *, side: int, step: int, steps_per_epoch: int) -> float:
    """Returns the time that the steps to come are expected to take, evaluation not counted.

    The time of a step is taken to be proportional to the pixels of the resolution.

    Args:
      config: the settings of the run.
      seconds: measured time of a step.
      side: the resolution at which it was measured.
      step: steps taken.
      steps_per_epoch: full batches in an epoch.
    """
    return math.fsum(
        (steps_per_epoch - max(0, step - epoch * steps_per_epoch)) * seconds * (config.resolution(epoch) / side) ** 2
        for epoch in range(step // steps_per_epoch, config.epochs)
    )


def describe_memory() -> str:
    """Describes the most memory that the process, or its first accelerator, has used so far."""
    import jax

    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used is not None:
        return f"{used / 1e9:.2f} GB of the device's memory"
    try:
        import resource
    except ImportError:  # On Windows
        return "memory not measured"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB of memory"


def describe_arithmetic(config: Config, log: RunLog, *, classes: int) -> str:
    """Describes the floating-point operations of a run, and how they were counted."""
    # Training does not resize pictures inside the network.
    model = dataclasses.replace(config.model, inference_side=None)
    total, terms = 0, []
    for side, pictures in pictures_by_side(config, log).items():
        flops = picture_flops(model, classes=classes, side=side)
        total += 3 * flops * pictures
        terms.append(f"{pictures:,} pictures of {side}x{side} pixels at {flops / 1e6:,.2f} million each")
    mantissa, exponent = f"{total:.2e}".split("e")
    left_out = ", without what its teachers compute" if config.distill.teachers else ""
    return (
        f"{mantissa}e{int(exponent)} floating-point operations: {' and '.join(terms)}, times 3 for forward and "
        f"backward; convolutions and dense layers only{left_out}"
    )


def picture_flops(config: ModelConfig, *, classes: int, side: int) -> int:
    """Counts the floating-point operations of the forward pass on one picture, in convolutions and dense layers.

    A multiplication and an addition are two operations; products with zero padding are counted. The count is that of
    the network's definition, whatever kernels compute it.
    """
    # Nothing else of a comparison of runs needs JAX.
    import jax
    import jax.numpy as jnp

    from jaxcnn.models import registry
    from jaxcnn.state import init_variables

    model = registry.build(config, classes=classes)
    variables = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=side), jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)  # type: ignore[no-untyped-call]
    traced = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False))(variables, picture)
    return _flops(traced.jaxpr)


def count_parameters(config: Config, classes: int) -> int:
    """Counts the trainable parameters of a network from its shapes, without computing it."""
    import jax

    from jaxcnn.models import registry
    from jaxcnn.state import init_variables

    model = registry.build(config.model, classes=classes)
    shapes = jax.eval_shape(
        lambda key: init_variables(key, model=model, image_size=config.data.image_size), jax.random.key(0)
    )
    return registry.count_parameters(shapes["params"])


def _flops(jaxpr: Any) -> int:
    """Counts the operations of convolutions and matrix products in a jaxpr and in the jaxprs that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            total += 2 * equation.outvars[0].aval.size * _terms(equation)
        for inner in equation.params.values():
            total += _flops(inner) if hasattr(inner, "eqns") else 0
    return total


def _terms(equation: Any) -> int:
    """Returns how many products are summed for each element of a convolution's or a matrix product's result."""
    # The second operand is the kernel of a convolution, or the right matrix of a product.
    shape: tuple[int, ...] = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (_, contracted), _ = numbers
        return math.prod(shape[axis] for axis in contracted)
    outputs: int = shape[numbers.rhs_spec[0]]
    return math.prod(shape) // outputs


def pictures_by_side(config: Config, log: RunLog) -> dict[int, int]:
    """Counts the pictures that a run has seen at each resolution; in every epoch, each picture counts again."""
    return {side: steps * config.batch_size for side, steps in log.steps_by_resolution(config.resolution).items()}


def format_duration(seconds: float) -> str:
    """Formats a duration, such as `41 s`, `3 min 12 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
