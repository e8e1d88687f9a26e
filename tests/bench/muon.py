"""Muon's rule on a preset's kernels, against Optax' own: `python -m tests.bench.muon [--preset PRESET]`.

The two take turns on the same random gradients, without a network. Prints the milliseconds of an update of all kernels,
best and median; the last line is one JSON object.
"""

import argparse
import json
import statistics
import time

import jax
import optax
import optax.contrib

from jaxcnn.models import registry
from jaxcnn.muon import scale_by_muon
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.ops.compiler import jit
from jaxcnn.presets import PRESETS
from jaxcnn.state import init_variables
from tests.bench.train_step import CLASSES

MOMENTUM = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny_imagenet", help="whose kernels to take")
    parser.add_argument("--rounds", type=int, default=20, help="updates of each")
    arguments = parser.parse_args()
    keep_freed_memory()
    # Random gradients of the shapes of the preset's kernels.
    config = PRESETS[arguments.preset]()
    model = registry.build(config.model, classes=CLASSES)
    shapes = jax.eval_shape(lambda key: init_variables(key, model=model, image_size=64), jax.random.key(0))
    kernels = [leaf for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim > 1]
    keys = jax.random.split(jax.random.key(0), len(kernels))
    gradients = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, kernels, strict=True)]
    # Both rules, compiled with the same options.
    dimensions = [optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) for leaf in kernels]
    optax_rule = optax.contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=dimensions)
    rules = {"jaxcnn": scale_by_muon(MOMENTUM), "optax": optax_rule}
    updates = {name: jit(rule.update) for name, rule in rules.items()}
    states = {name: rule.init(gradients) for name, rule in rules.items()}
    # Turns of one update each.
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    for _ in range(arguments.rounds + 1):
        for name, update in updates.items():
            begin = time.perf_counter()
            _, states[name] = jax.block_until_ready(update(gradients, states[name]))
            seconds[name].append(time.perf_counter() - begin)
    best = {name: min(taken[1:]) * 1000 for name, taken in seconds.items()}  # The first one compiles.
    median = {name: statistics.median(taken[1:]) * 1000 for name, taken in seconds.items()}
    for name in rules:
        print(f"{name:8}{best[name]:8.1f}{median[name]:8.1f}  ms, best and median")
    print(json.dumps({**best, "median": median, "ratio": median["optax"] / median["jaxcnn"]}))


if __name__ == "__main__":
    main()
