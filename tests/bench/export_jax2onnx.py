"""Writes the benchmark's networks with jax2onnx: `python -m tests.bench.export_jax2onnx FOLDER`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import onnx
from jax2onnx import to_onnx

from tests.bench.export_networks import NETWORKS, SIDE, function


def main(folder: Path) -> None:
    for name in NETWORKS:
        batch, *_ = jax.export.symbolic_shape("B")
        image = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 3), jnp.uint8)
        model = to_onnx(function(name), inputs=[image])
        # Stale shapes keep onnxruntime from optimizing.
        del model.graph.value_info[:]
        onnx.save(model, folder / f"{name}.jax2onnx.onnx")


main(Path(sys.argv[1]))
