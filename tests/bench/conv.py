"""Speed of every convolution of a preset's network: `python -m tests.bench.conv --preset PRESET`.

Prints, for each shape, the GFLOP/s of the value, of the input's gradient and of the kernel's gradient: by `lax`, by
`lax` with oneDNN, and by the CPU kernels. Each figure is the best of a few runs, in which the three take turns. The
maps of the CPU kernels are HWNC, as they are inside a network. All are credited with the operations of the ordinary
convolution, also the kernel that needs fewer. The last line is a JSON list.
"""

import argparse
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.models.registry import build
from jaxcnn.ops.allocator import keep_freed_memory
from jaxcnn.ops.compiler import compiler_options
from jaxcnn.ops.conv import conv
from jaxcnn.ops.dispatch import use_cpu_kernels
from jaxcnn.ops.layout import to_hwnc, to_nhwc
from jaxcnn.presets import PRESETS

PARTS = ("value", "input", "kernel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny_imagenet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    rows = []
    print(f"{'map':>14} {'kernel':>16}" + "".join(f"{way + ' ' + part:>20}" for way in WAYS for part in PARTS))
    for map_shape, kernel_shape in convolutions(arguments.preset, arguments.resolution):
        x = random((arguments.batch, *map_shape), arguments.precision)
        kernel = random(kernel_shape, "float32")
        rates = measure(x, kernel, runs=arguments.runs)
        sizes = f"{'x'.join(map(str, map_shape)):>14} {'x'.join(map(str, kernel_shape)):>16}"
        print(sizes + "".join(f"{rates[way][part]:20,.0f}" for way in WAYS for part in PARTS), flush=True)
        rows.append({"map": map_shape, "kernel": kernel_shape, "gflops": rates})
    print(json.dumps(rows))


def convolutions(preset: str, resolution: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of map and kernel of each different convolution, in the network's order."""
    model = build(PRESETS[preset]().model, classes=200)
    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.uint8)
    found: dict[Any, None] = {}

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                x, kernel = (variable.aval.shape for variable in equation.invars)
                found[(x[1:], kernel)] = None
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    keys = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    walk(jax.make_jaxpr(lambda images: model.init_with_output(keys, images, train=True))(images).jaxpr)
    return list(found)


def random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def by_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv(x, kernel)


def by_cpu_kernels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Takes and gives HWNC, so that XLA removes the transposes, as it does inside a network."""
    with use_cpu_kernels(True):
        return to_hwnc(conv(to_nhwc(x), kernel))


WAYS = {"lax": (by_lax, False), "oneDNN": (by_lax, True), "CPU kernels": (by_cpu_kernels, True)}


def measure(x: jax.Array, kernel: jax.Array, *, runs: int) -> dict[str, dict[str, float]]:
    """GFLOP/s by implementation and part."""
    flops = 2 * x.shape[0] * x.shape[1] * x.shape[2] * kernel.size
    calls = {}
    for way, (function, onednn) in WAYS.items():
        map_ = jnp.copy(to_hwnc(x)) if way == "CPU kernels" else x
        for part, call in parts(function, compiler_options() if onednn else {}).items():
            dy = jax.eval_shape(function, map_, kernel)
            calls[way, part] = functools.partial(call, map_, kernel, random(dy.shape, str(dy.dtype)))
            jax.block_until_ready(calls[way, part]())
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(runs):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.perf_counter() - begin)
    return {way: {part: flops / best[way, part] / 1e9 for part in PARTS} for way in WAYS}


def parts(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The value and both gradients as compiled functions of the map, the kernel and the gradient of the result."""
    jit = functools.partial(jax.jit, compiler_options=options)
    return {
        "value": jit(lambda x, kernel, dy: function(x, kernel)),
        "input": jit(lambda x, kernel, dy: jax.vjp(lambda x: function(x, kernel), x)[1](dy)[0]),
        "kernel": jit(lambda x, kernel, dy: jax.vjp(lambda kernel: function(x, kernel), kernel)[1](dy)[0]),
    }


if __name__ == "__main__":
    main()
