"""EfficientNet-Lite: its published sizes and its kernels. Its weights are in `pretrained/test_packages.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.config import ModelConfig
from jaxcnn.models import registry

PARAMETERS = {0: 4_652_008, 1: 5_416_680, 2: 6_092_072, 3: 8_197_096, 4: 13_006_568}
"""Published as 4.7, 5.4, 6.1, 8.2 and 13.0 million."""


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    network = registry.build(ModelConfig(name=name), classes=1000)
    found = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def random_variables(network: registry.Network) -> dict:
    """Kernels that keep the deviation of their input; all else near one. Flax's own take seconds to compile."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    random = np.random.default_rng(1)

    def draw(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return jnp.asarray(random.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("number", PARAMETERS)
def test_the_networks_have_their_published_size(number):
    found = shapes(f"efficientnet_lite{number}")
    assert sum(int(np.prod(shape)) for path, shape in found.items() if path.startswith("params/")) == PARAMETERS[number]


@pytest.mark.run
@pytest.mark.parametrize("train", [False, True])
def test_cpu_kernels_compute_the_same(train):
    config = ModelConfig(name="efficientnet_lite0")
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    images = jnp.asarray(images)
    plain = registry.build(config, classes=3)
    variables = random_variables(plain)

    def run(network):
        rngs = {"dropout": jax.random.key(1)}
        return network.apply(variables, images, train=train, rngs=rngs, mutable=["batch_stats"])

    expected, found = (
        jax.jit(lambda n=n: run(n))() for n in (plain, registry.build(config, classes=3, cpu_kernels=True))
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
