"""What a training cost in arithmetic, however fast the machine was."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxcnn import models
from jaxcnn.config import Config, ModelConfig
from jaxcnn.history import RunLog
from jaxcnn.state import init_variables


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
