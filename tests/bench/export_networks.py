"""The networks of the export benchmark in Flax: a ResNet and an MBConv network with squeeze-excite and SiLU."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIDE, CLASSES = 64, 200
WIDTHS = (32, 64, 128)
BLOCKS = 2
EXPANSION, REDUCTION = 4, 4

norm = partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)
conv = partial(nn.Conv, use_bias=False)


class ResNet(nn.Module):
    """Basic blocks (He et al. 2015), two for each width; each width halves the resolution."""

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) - 118) / 64
        x = nn.relu(norm()(conv(WIDTHS[0], (3, 3), padding=1)(x)))
        for i, width in enumerate(WIDTHS):
            for j in range(BLOCKS):
                stride = 2 if i and not j else 1
                y = nn.relu(norm()(conv(width, (3, 3), strides=stride, padding=1)(x)))
                y = norm()(conv(width, (3, 3), padding=1)(y))
                if stride == 2:
                    x = norm()(conv(width, (1, 1), strides=2, padding=0)(x))
                x = nn.relu(x + y)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class MBConv(nn.Module):
    """Inverted residuals (Sandler et al. 2018) with squeeze-excite and SiLU, as in EfficientNet (Tan and Le 2019)."""

    @nn.compact
    def __call__(self, x):
        x = (x.astype(jnp.float32) - 118) / 64
        x = nn.silu(norm()(conv(WIDTHS[0], (3, 3), strides=2, padding=1)(x)))
        for i, width in enumerate(WIDTHS):
            for j in range(BLOCKS):
                x = self.block(x, width, stride=2 if i and not j else 1)
        return nn.Dense(CLASSES)(x.mean((1, 2)))

    def block(self, x, width, *, stride):
        wide = x.shape[-1] * EXPANSION
        y = nn.silu(norm()(conv(wide, (1, 1))(x)))
        y = nn.silu(norm()(conv(wide, (3, 3), strides=stride, padding=1, feature_group_count=wide)(y)))
        gate = nn.silu(nn.Conv(wide // REDUCTION, (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.sigmoid(nn.Conv(wide, (1, 1))(gate))
        y = norm()(conv(width, (1, 1))(y))
        return x + y if x.shape == y.shape else y


NETWORKS = {"resnet": ResNet, "mbconv": MBConv}


def function(name: str) -> Any:
    """Returns a network as a function of uint8 pictures, with random parameters and statistics other than 0 and 1."""
    module = NETWORKS[name]()
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8)))
    random = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "var":
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        noise = random.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return (noise + (path[-1].key == "scale")).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return lambda image: module.apply(variables, image)
