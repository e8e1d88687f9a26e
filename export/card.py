"""The model card: what a file is, how good it is and how to use it, as Markdown with Hugging Face's front matter."""

from collections.abc import Mapping, Sequence
from typing import Any

_OUTPUTS = {
    "logits": "before the softmax",
    "probabilities": "the softmax of the logits",
    "features": "the mean of each channel of the last feature map, to search or cluster by",
    "heatmap": "where the evidence for the top class is, from 0 to 1, at the last feature map's resolution",
}
_FIGURES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "loss": "cross-entropy", "ece": "calibration error"}

_USE = """\
import json
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{file}")
metadata = session.get_modelmeta().custom_metadata_map
height, width = json.loads(metadata["image_size"])
photo = Image.open("photo.jpg").convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
(probabilities,) = session.run(["probabilities"], {{"image": np.asarray(photo)[None]}})
best = int(probabilities[0].argmax())
print(json.loads(metadata["names"])[best], probabilities[0, best])
"""


def write_card(
    metadata: Mapping[str, Any],
    file: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    checks: Sequence[str],
) -> str:
    """The card.

    Args:
      metadata: of the file.
      file: what the file is, as `sidecars.describe` tells.
      evaluation: the run's evaluation on its validation pictures, if it was made.
      training: how the model was trained, by what each line is called.
      checks: what was verified, a sentence each.
    """
    classes = len(metadata["names"])
    sections = [
        _front_matter(metadata, evaluation),
        f"# {metadata['config']['model']['name']}, {classes} classes of {metadata['dataset']}",
        f"{metadata['description']}. One ONNX file, from raw pixels to probabilities: `{file['file']}`, "
        f"{file['bytes'] / 1e6:.1f} MB, operator set {file['opset']}, IR version {file['ir_version']}.",
        "## Figures\n\n" + _figures(metadata, evaluation),
        *([_quantization(metadata["quantization"])] if "quantization" in metadata else []),
        "## Inputs and outputs\n\n" + _signature(file),
        "## Use\n\n```python\n" + _USE.format(file=file["file"]) + "```",
        "## Training\n\n" + _table(("", ""), list(training.items())),
        "## Checked before this file got its name\n\n" + "\n".join(f"- {each}" for each in checks),
        "## Classes\n\n" + ", ".join(map(_plain, metadata["names"])),
        f"License of the data: {metadata['license'] or 'not told'}. SHA-256 of the file: `{file['sha256']}`.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "---",
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags: [image-classification, onnx, jax, flax]",
    ]
    if evaluation is not None:
        lines += [
            "model-index:",
            f"- name: {_quoted(metadata['config']['model']['name'])}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {_quoted(metadata['dataset'])}, type: image-classification, split: validation}}",
            "    metrics:",
            *(f"    - {{type: {key}, value: {evaluation[key]:.6g}}}" for key in _FIGURES if key in evaluation),
        ]
    return "\n".join([*lines, "---"])


def _figures(metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    found = evaluation if evaluation is not None else metadata["metrics"]
    rows = [(title, f"{found[key]:.4f}") for key, title in _FIGURES.items() if found.get(key) is not None]
    if not rows:
        return "The run was stopped before its first evaluation."
    count = f"{evaluation['count']:,} " if evaluation is not None and "count" in evaluation else ""
    return _table(("", f"{count}validation pictures"), rows)


def _quantization(figures: Mapping[str, Any]) -> str:
    rows = [
        ("top-1 accuracy", f"{figures['top1_float32']:.4f}", f"{figures['top1_int8']:.4f}"),
        ("one picture, ms", f"{figures['ms_float32']:.3f}", f"{figures['ms_int8']:.3f}"),
        ("pictures a second, batches of 64", f"{figures['rate_float32']:.0f}", f"{figures['rate_int8']:.0f}"),
        ("size, MB", f"{figures['bytes_float32'] / 1e6:.2f}", f"{figures['bytes_int8'] / 1e6:.2f}"),
    ]
    told = (
        "Weights are int8 per channel, activations uint8, calibrated on "
        f"{figures['calibration_pictures']} training pictures; the picture's preparation, the last layer and the "
        f"softmax are float32. Measured on {figures['pictures']:,} validation pictures, and in onnxruntime with one "
        f"thread of {figures['processor']}."
    )
    return f"## In eight bits\n\n{told}\n\n" + _table(("", "float32", "int8"), rows)


def _signature(file: Mapping[str, Any]) -> str:
    rows = [(each, "uint8 RGB, a picture as it is decoded") for each in file["inputs"]]
    rows += [(each, _OUTPUTS.get(each["name"], "")) for each in file["outputs"]]
    return _table(
        ("name", "type", "shape", ""),
        [(f"`{each['name']}`", each["type"], ", ".join(map(str, each["shape"])), told) for each, told in rows],
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: Any) -> str:
    """Without what would end a cell or a line: class names come from strangers' folders."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(escaped.split())}"'
