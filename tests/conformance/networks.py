"""The files that the runtimes run: every network, with random parameters and batch statistics."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import export
from export.explain import explain
from jaxcnn.config import ModelConfig
from jaxcnn.models import registry
from jaxcnn.presets import PRESETS

SIDE, CLASSES, PICTURES = 64, 200, 4
EXPLAINED = "resnet with features and heatmap"


def configurations() -> dict[str, ModelConfig]:
    """Returns a configuration for each network by name: the fixed ones, and residual ones of presets and variants."""
    found = {name: ModelConfig(name=name) for name in registry.NAMES if name != "resnet"}
    found |= {f"resnet of {name}": make().model for name, make in PRESETS.items() if make().model.name == "resnet"}
    found["resnet, no stem"] = ModelConfig(widths=(16, 32, 64), blocks=(1, 1, 1), stem=1)
    found["resnet, padded stem"] = ModelConfig(widths=(16, 32), blocks=(1, 1), stem=3, preactivation=True)
    found["resnet, enlarged"] = ModelConfig(widths=(16, 32), blocks=(1, 1), inference_side=80)
    found[EXPLAINED] = found["resnet, no stem"]
    return {name: dataclasses.replace(config, precision="float32") for name, config in found.items()}


def write(folder: Path) -> list[str]:
    """Writes NAME.onnx, NAME.image (uint8) and NAME.json with JAX's logits for each network; returns the names.

    The programs of the runtimes read raw bytes and JSON only, so that they need no library besides the runtime.
    """
    names = []
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (PICTURES, SIDE, SIDE, 3), np.uint8)
    for number, (name, config) in enumerate(configurations().items()):
        classify = _classifier(config, explained=name == EXPLAINED)
        model = export.to_onnx(classify, {"image": ("uint8", ("batch", SIDE, SIDE, 3))})
        file = f"{number:02}"
        (folder / f"{file}.onnx").write_bytes(model.SerializeToString())
        (folder / f"{file}.image").write_bytes(images.tobytes())
        with jax.default_matmul_precision("highest"):
            logits = np.asarray(jax.jit(classify)(images)["logits"])
        outputs = [output.name for output in model.graph.output]
        facts = {"name": name, "outputs": outputs, "shape": images.shape, "classes": CLASSES, "logits": logits.tolist()}
        (folder / f"{file}.json").write_text(json.dumps(facts))
        names.append(file)
    return names


def _classifier(config: ModelConfig, *, explained: bool) -> Any:
    module = registry.build(config, classes=CLASSES)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8), train=False)
    )
    variables = jax.tree_util.tree_map_with_path(_draw, shapes)

    def classify(image: jax.Array) -> dict[str, jax.Array]:
        logits = lambda x: module.apply(variables, x, train=False)  # noqa: E731
        outputs = explain(logits, image, features=True, heatmap=True) if explained else {"logits": logits(image)}
        return outputs | {"probabilities": jax.nn.softmax(outputs["logits"])}

    return classify


def _draw(path: Any, leaf: Any) -> np.ndarray:
    """Draws parameters that keep the activations in range, and statistics other than zero and one."""
    random = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    name = path[-1].key
    if name == "var":
        return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    if name in ("scale", "mean", "bias"):
        return (random.normal(size=leaf.shape) * 0.1 + (name == "scale")).astype(leaf.dtype)
    deviation = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
    return (random.normal(size=leaf.shape) * deviation).astype(leaf.dtype)
