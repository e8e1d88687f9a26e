"""The model card: what a file is, how good it is and how to use it, as Markdown with Hugging Face's front matter."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_OUTPUTS = {
    "logits": "before the softmax",
    "probabilities": "the softmax of the logits",
    "features": "the mean of each channel of the last feature map, to search or cluster by",
    "heatmap": "where the evidence for the top class is, from 0 to 1, at the last feature map's resolution",
}
_FIGURES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "loss": "cross-entropy", "ece": "calibration error"}
_RANKED = 10
"""Classes, and confusions, that are told from either end."""

_USE = """\
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
metadata = session.get_modelmeta().custom_metadata_map
height, width = json.loads(metadata["image_size"])
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
photo = photo.resize((width, height), Image.Resampling.BICUBIC)
(probabilities,) = session.run(["probabilities"], {{"image": np.asarray(photo)[None]}})
best = int(probabilities[0].argmax())
print(json.loads(metadata["names"])[best], probabilities[0, best])
"""


def write_card(
    metadata: Mapping[str, Any],
    file: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None,
    checks: Sequence[str],
) -> str:
    """The card.

    Args:
      metadata: of the file.
      file: what the file is, as `sidecars.describe` tells.
      evaluation: this checkpoint's evaluation on the run's validation pictures, if it was made.
      checks: what was verified, a sentence each.
    """
    classes = len(metadata["names"])
    sections = [
        _front_matter(metadata, evaluation),
        f"# {metadata['config']['model']['name']}, {classes} classes of {metadata['dataset']}",
        f"{metadata['description']}. One ONNX file, from raw pixels to probabilities: `{file['file']}`, "
        f"{file['bytes'] / 1e6:.1f} MB, operator set {file['opset']}, IR version {file['ir_version']}.",
        "## Figures\n\n" + _figures(metadata, evaluation),
        *([_quantization(metadata["quantization"], classes)] if "quantization" in metadata else []),
        *([] if evaluation is None else [_classes(evaluation)]),
        "## Inputs and outputs\n\n" + _signature(file),
        "## Use\n\n```python\n" + _USE.format(file=file["file"]) + "```",
        "## Limits\n\n" + _list(_limits(metadata, file, evaluation)),
        "## Training\n\n" + _trainings(metadata["trainings"]),
        "## Checked before this file got its name\n\n" + _list(checks),
        "## Classes\n\n" + ", ".join(map(_plain, metadata["names"])),
        f"## Terms\n\n{_terms(metadata['trainings'])}\n\nSHA-256 of the file: `{file['sha256']}`.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "---",
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags: [image-classification, onnx, jax, flax]",
        # The Hub's word for terms that its list of licenses does not have: they are in the card's last section.
        *(["license: other"] if any(each["license"] for each in metadata["trainings"]) else []),
    ]
    if evaluation is not None:
        lines += [
            "model-index:",
            f"- name: {_quoted(metadata['config']['model']['name'])}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {_quoted(metadata['dataset'])}, type: image-classification, split: validation}}",
            "    metrics:",
            *(f"    - {{type: {key}, value: {evaluation[key]:.6g}}}" for key in _FIGURES),
        ]
    return "\n".join([*lines, "---"])


def _figures(metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    found = metadata["metrics"]
    columns = [found] + ([evaluation["with_flip"]] if evaluation is not None and "with_flip" in evaluation else [])
    rows = [(_FIGURES[key], *(f"{each[key]:.4f}" for each in columns)) for key in _told(metadata) if key in found]
    if not rows:
        return "The run was stopped before its first evaluation."
    count = f"{evaluation['count']:,} " if evaluation is not None else ""
    header = ("", f"{count}validation pictures", "averaged with the mirror images")[: len(columns) + 1]
    notes = [
        *([_uncertainty(found["top1"], evaluation["count"])] if evaluation is not None else []),
        "The epoch of this checkpoint was chosen by these same pictures: on others expect a little less.",
        *([_calibration(metadata["calibration"])] if "calibration" in metadata else []),
        *(
            ["That was measured before the file was quantized."]
            if {"calibration", "quantization"} <= metadata.keys()
            else []
        ),
    ]
    return _table(header, rows) + "\n\n" + " ".join(notes)


def _uncertainty(top1: float, count: int) -> str:
    return f"The standard error of the top-1 accuracy is {math.sqrt(top1 * (1 - top1) / count):.4f}."


def _calibration(calibration: Mapping[str, Any]) -> str:
    return (
        f"The probabilities are calibrated: the logits are divided by {calibration['temperature']:.3g}, a temperature "
        "(Guo et al. 2017) that is in the weights of the file. Without it the calibration error would be "
        f"{calibration['ece_before']:.4f}. Fitted on half of the pictures and measured on the other half, both ways, "
        f"it is {calibration['ece_after']:.4f}; for the table it was fitted on all of them."
    )


def _told(metadata: Mapping[str, Any]) -> list[str]:
    """The figures that mean something: the right one is always among the first five of five classes."""
    return [key for key in _FIGURES if key != "top5" or len(metadata["names"]) > 5]


def _quantization(figures: Mapping[str, Any], classes: int) -> str:
    rows = [
        *(
            (title, f"{figures[f'{key}_float32']:.4f}", f"{figures[f'{key}_int8']:.4f}")
            for key, title in _FIGURES.items()
            if key != "top5" or classes > 5
        ),
        ("one picture, ms", f"{figures['ms_float32']:.3g}", f"{figures['ms_int8']:.3g}"),
        ("pictures a second, batches of 64", f"{figures['rate_float32']:.0f}", f"{figures['rate_int8']:.0f}"),
        ("size, MB", f"{figures['bytes_float32'] / 1e6:.3g}", f"{figures['bytes_int8'] / 1e6:.3g}"),
    ]
    told = (
        "Weights are int8 per channel and activations uint8, with ranges taken from "
        f"{figures['calibration_pictures']} training pictures. Weights are within 64 of zero: processors without VNNI "
        "instructions add two products in 16 bits, and larger ones would overflow. The picture's preparation, the "
        "first layer, the last one and the softmax are float32. Measured on "
        f"{figures['pictures']:,} validation pictures, and in onnxruntime with one "
        f"thread of {figures['processor']}, the fastest of some rounds."
    )
    return f"## In eight bits\n\n{told}\n\n" + _table(("", "float32", "int8"), rows)


def _classes(evaluation: Mapping[str, Any]) -> str:
    """The classes from both ends, or all of them if they are few, and what is taken for what."""
    ranked = _ranked(evaluation)
    if len(ranked) <= 2 * _RANKED:
        rows = [(each["name"], f"{each['top1']:.4f}", f"{each['count']:,}") for each in ranked]
        section = "## From the worst class to the best\n\n" + _table(("class", "top-1", "pictures"), rows)
    else:
        pairs = zip(ranked[:_RANKED], ranked[: -_RANKED - 1 : -1], strict=True)
        sides = [[(each["name"], f"{each['top1']:.4f}", f"{each['count']:,}") for each in pair] for pair in pairs]
        section = "## Worst and best classes\n\n"
        section += _table(
            ("worst", "top-1", "pictures", "best", "top-1", "pictures"), [(*worst, *best) for worst, best in sides]
        )
    confused = _confusions(evaluation)
    if not confused:
        return section
    return section + "\n\n## Most frequent confusions\n\n" + _table(("class", "taken for", "times", "of"), confused)


def _ranked(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Classes that have pictures, the worst first."""
    return sorted((each for each in evaluation["per_class"] if each["count"]), key=lambda each: each["top1"])


def _confusions(evaluation: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    per_class = evaluation["per_class"]
    pairs = [
        (per_class[i]["name"], per_class[j]["name"], times, per_class[i]["count"])
        for i, row in enumerate(evaluation["confusion"])
        for j, times in enumerate(row)
        if times and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_RANKED]


def _signature(file: Mapping[str, Any]) -> str:
    rows = [(each, "uint8 RGB, a picture as it is decoded") for each in file["inputs"]]
    rows += [(each, _OUTPUTS.get(each["name"], "")) for each in file["outputs"]]
    return _table(
        ("name", "type", "shape", ""),
        [(f"`{each['name']}`", each["type"], ", ".join(map(str, each["shape"])), told) for each, told in rows],
    )


def _limits(metadata: Mapping[str, Any], file: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """What nobody should expect of it, a paragraph each."""
    height, width = metadata["image_size"]
    datasets = dict.fromkeys(_plain(each["dataset"]) for each in metadata["trainings"])
    limits = [
        f"It knows these {len(metadata['names'])} classes and no others. Whatever a picture shows, the probabilities "
        "add up to 1 over them: something else gets one of these classes too, often with a high probability, and "
        "nothing in the file notices.",
        f"It sees {width}x{height} pixels. A picture of another size is stretched to that: what is small in it is "
        "lost, and what is long is distorted. It names one class for the whole picture, not where something is, nor "
        "how many.",
        f"All it knows is from {' and '.join(datasets)}. Collections of pictures, those gathered from the web above "
        "all, show some places, people, things and points of view far more than others, and some of their labels are "
        "wrong; it has learnt that with the rest. Expect lower accuracy, and probabilities that are too high, on "
        "pictures from other cameras, places or times.",
        "Measure it on pictures of your own before you rely on it, one folder per class: `python -m jaxcnn.evaluate "
        f"{file['file']} --data.source FOLDER --split all`. Where a mistake can harm somebody, let a person decide.",
    ]
    if metadata["config"]["augment"]["flip"]:
        limits.insert(2, "It was trained on mirror images too, so it cannot tell left from right.")
    ranked = _ranked(evaluation) if evaluation is not None else []
    if ranked:
        worst, best = ranked[0], ranked[-1]
        limits.insert(
            1,
            f"It is not equally good at all of them: it names {worst['top1']:.0%} of “{_plain(worst['name'])}” right, "
            f"and {best['top1']:.0%} of “{_plain(best['name'])}”.",
        )
    return limits


def _trainings(trainings: Sequence[Mapping[str, Any]]) -> str:
    """How it was trained; if it has learnt in several trainings each by its number, the last one first."""
    tables = [_table(("", ""), list(each["recipe"].items())) for each in trainings]
    if len(tables) == 1:
        return tables[0]
    names = [f"### Training {number}, on {_plain(each['dataset'])}" for number, each in enumerate(trainings, start=1)]
    return "\n\n".join(f"{name}\n\n{table}" for name, table in reversed([*zip(names, tables, strict=True)]))


def _terms(trainings: Sequence[Mapping[str, Any]]) -> str:
    """The terms of all data that the weights have learnt from, also of what they learnt first."""
    terms = {each["dataset"]: each["license"] for each in reversed(trainings)}
    told = [f"{_plain(name)}, whose terms are: {_plain(license) or 'not told'}" for name, license in terms.items()]
    learnt = "; and before that from ".join(told)
    return f"The weights were learnt from {learnt}. They may be used only as the pictures may."


def _list(paragraphs: Sequence[str]) -> str:
    return "\n".join(f"- {each}" for each in paragraphs)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: Any) -> str:
    """Without what would end a cell or a line, or begin a tag: class names come from strangers' folders."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(escaped.split())}"'
