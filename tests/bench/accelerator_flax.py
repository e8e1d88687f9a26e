"""ResNet-50 and its training step as in the ImageNet example of Flax, for `tests.bench.accelerator`.

Written after https://github.com/google/flax/tree/main/examples/imagenet: convolutions in bfloat16, batch normalisation
with a momentum of .9, SGD with Nesterov's momentum, weight decay as part of the loss. The example augments pictures on
the host, so that its step begins with normalised ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

WEIGHT_DECAY, RATE, MOMENTUM = 1e-4, 0.1, 0.9


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1."""

    width: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.width, (3, 3), (self.stride, self.stride))(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm(name="norm_proj")(
                self.conv(4 * self.width, (1, 1), (self.stride, self.stride), name="conv_proj")(x)
            )
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 7x7 convolution and a maximum pool, then stages of bottlenecks."""

    blocks: tuple[int, ...]
    width: int
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = conv(self.width, (7, 7), (2, 2), padding=((3, 3), (3, 3)), name="conv_init")(x)
        x = nn.max_pool(nn.relu(norm(name="bn_init")(x)), (3, 3), strides=(2, 2), padding="SAME")
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(self.width * 2**stage, stride, conv, norm)(x)
        return jnp.asarray(nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2))), jnp.float32)


def make_step(*, blocks: tuple[int, ...], width: int, classes: int, batch: int, side: int) -> Callable[[], Any]:
    """A step on random pictures that are on the device already; it returns the loss, which need not be computed yet."""
    model = ResNet(blocks, width, classes, jnp.bfloat16)
    optimizer = optax.sgd(RATE * batch / 256, momentum=MOMENTUM, nesterov=True)
    images = jax.random.normal(jax.random.key(1), (batch, side, side, 3), jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, classes)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images[:1])
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))

    @partial(jax.jit, donate_argnums=0)
    def take(state, images, labels):
        params, stats, opt_state = state

        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            decay = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
            return loss + 0.5 * WEIGHT_DECAY * decay, updated["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), loss

    def step() -> Any:
        nonlocal state
        state, loss = take(state, images, labels)
        return loss

    return step
