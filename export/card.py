"""The model card: what a model is, how good it is and how to use it, as Markdown with Hugging Face's front matter."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcnn.calibration import Calibration
from jaxcnn.metadata import Metadata
from jaxcnn.run.earlier_trainings import Training

_OUTPUTS = {
    "logits": "before the softmax",
    "probabilities": "the softmax of the logits",
    "features": "what the last layer sees, to search or cluster by",
    "heatmap": "where the evidence for the top class is, from 0 to 1, at the last feature map's resolution",
}
_FIGURES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "loss": "cross-entropy", "ece": "calibration error"}
_RANKED = 10
"""How many of the worst classes, the best classes and the confusions are listed."""
_NAMED = 1000
"""Most classes whose names are listed."""
_MARKUP = re.compile(r"[\\`*\[<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w]+;)")
"""What Markdown may take for the start of something. An underscore within a word is plain text."""
_ENTITIES = {"<": "&lt;", "&": "&amp;"}

USAGE = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
metadata = session.get_modelmeta().custom_metadata_map
(size, _), resize = json.loads(metadata["image_size"]), json.loads(metadata["resize"])
side, resampling = resize.get("side", size), Image.Resampling[resize["filter"].upper()]


def scale(photo, width, height):
    target, box = (side, side), (0, 0, width, height)
    if resize["mode"] == "crop":
        short = min(width, height)
        box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
    if resize["mode"] == "pad":
        target = [max(int(length * size / max(width, height) + 0.5), 1) for length in (width, height)]
    return photo.resize(target, resampling, box=box)


photo = Image.open("photo.jpg")
whole, reduced = photo.size, photo.draft(None, (4 * side, 4 * side))
if photo.size != whole:  # A large JPEG, which is decoded at a half, a quarter or an eighth of its size
    photo = scale(photo, *reduced[1][2:])
photo = ImageOps.exif_transpose(photo)
if photo.has_transparency_data:
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
photo = scale(photo.convert("RGB"), *photo.size)
image = Image.new("RGB", (size, size), (127, 127, 127))
image.paste(photo, ((size - photo.width) // 2, (size - photo.height) // 2))

(probabilities,) = session.run(["probabilities"], {"image": np.asarray(image)[None]})
best = int(probabilities[0].argmax())
print(json.loads(metadata["names"])[best], probabilities[0, best])
"""
"""Classifies a photograph with plain Pillow, NumPy and onnxruntime; `{file}` stands for the model. The pixels are those
of `jaxcnn.data.resize`, bit for bit."""

TELEMETRY = (
    "onnxruntime 1.30 and later sends usage data to Microsoft, unless the environment variable `ORT_DISABLE_TELEMETRY` "
    "is 1 before it is imported."
)
"""What users of `USAGE` should know about its runtime."""

_VIEWS = (
    "The file computes the mean of the probabilities for the picture and for its mirror image, which takes twice the "
    "time of one view."
)
_FITS = {
    "stretch": "is stretched to that, which loses small details and distorts pictures that are not square",
    "crop": "is scaled down, which loses small details, and what lies outside of the middle of its central square is "
    "not seen at all",
    "pad": "is scaled to that between gray bars, which loses small details",
}
"""What becomes of a picture of another size."""


def write_card(
    metadata: Metadata,
    file: Mapping[str, Any],
    *,
    evaluation: Mapping[str, Any] | None,
    checks: Sequence[str],
) -> str:
    """Writes the card of an exported model.

    Args:
      metadata: the model's metadata.
      file: name, size, checksum, inputs and outputs of the file, as `sidecars.describe` returns them.
      evaluation: the evaluation of the file on the validation pictures of its training; None without one.
      checks: what was verified, one sentence each.

    Returns:
      The card as Markdown. Names of classes and of data, which may be untrusted, are escaped.
    """
    classes = len(metadata.names)
    # Sections without content are left out.
    sections = [
        _front_matter(metadata, evaluation),
        f"# {metadata.config.model.name}, {classes} classes of {_plain(metadata.dataset)}",
        f"{_plain(metadata.description)}. One ONNX file, from raw pixels to probabilities: `{file['file']}`, "
        f"{file['bytes'] / 1e6:.1f} MB, operator set {file['opset']}, IR version {file['ir_version']}.",
        "## Evaluation\n\n" + _figures(metadata, evaluation),
        *([_quantization(metadata.quantization, classes)] if metadata.quantization is not None else []),
        *([] if evaluation is None else [_classes(evaluation)]),
        "## Inputs and outputs\n\n" + _signature(file),
        "## Usage\n\n```python\n" + USAGE.replace("{file}", file["file"]) + "```\n\n" + TELEMETRY,
        "## Limitations\n\n" + _list(_limits(metadata, file, evaluation)),
        "## Training\n\n" + _trainings(metadata.trainings),
        "## Verification\n\n" + _list(checks),
        "## Classes\n\n" + _names(metadata.names, file),
        f"## Terms of use\n\n{_terms(metadata.trainings)}\n\nSHA-256 of the file: `{file['sha256']}`.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(metadata: Metadata, evaluation: Mapping[str, Any] | None) -> str:
    lines = [
        "---",
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags: [image-classification, onnx, jax, flax]",
        # The Hub's keyword for terms outside its list of licenses. The card's last section has the terms.
        *(["license: other"] if any(training.license for training in metadata.trainings) else []),
    ]
    if evaluation is not None:
        lines += [
            "model-index:",
            f"- name: {_quoted(metadata.config.model.name)}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {_quoted(metadata.dataset)}, type: image-classification, split: validation}}",
            "    metrics:",
            *(f"    - {{type: {key}, value: {evaluation[key]:.6g}}}" for key in _FIGURES),
        ]
    return "\n".join([*lines, "---"])


def _figures(metadata: Metadata, evaluation: Mapping[str, Any] | None) -> str:
    """Writes the table of metrics, and how far they can be relied on."""
    # The table.
    metrics = metadata.metrics
    columns = [metrics] + ([evaluation["with_flip"]] if evaluation is not None and "with_flip" in evaluation else [])
    rows = [
        (_FIGURES[key], *(f"{column[key]:.4f}" for column in columns))
        for key in _figure_keys(len(metadata.names))
        if key in metrics
    ]
    if "published_top1" in metrics:
        return (
            f"Those who trained the weights published a top-1 accuracy of {metrics['published_top1']:.3f} on the "
            f"validation pictures of {_plain(metadata.dataset)}. It was not measured again for this file."
        )
    if not rows:
        return " ".join([_explain_absence(metadata), *([_VIEWS] if metadata.views is not None else [])])
    count = f"{evaluation['count']:,} " if evaluation is not None else ""
    header = ("", f"{count}validation pictures", "averaged with mirror images")[: len(columns) + 1]
    # What to know of the figures.
    notes = [
        *([_VIEWS] if metadata.views is not None else []),
        *([_uncertainty(metrics["top1"], evaluation["count"])] if evaluation is not None else []),
        "No choice of the training was based on these pictures."
        if metadata.config.is_frozen
        else "The checkpoint was selected by its accuracy on these same pictures: expect slightly less on new ones.",
        *([_calibration(metadata.calibration)] if metadata.calibration is not None else []),
        *(
            ["This calibration was measured before quantization."]
            if metadata.calibration is not None and metadata.quantization is not None
            else []
        ),
        *(
            ["This calibration was measured without mirror images."]
            if metadata.calibration is not None and metadata.views is not None
            else []
        ),
    ]
    return _table(header, rows) + "\n\n" + " ".join(notes)


def _explain_absence(metadata: Metadata) -> str:
    """Says why there are no metrics."""
    pictures = f"the validation pictures of {_plain(metadata.dataset)}"
    if metadata.step is None:
        return f"Its accuracy on {pictures} was neither published with the weights nor measured."
    if metadata.quantization is not None:
        return f"Its accuracy was measured on other pictures than {pictures}, see below."
    if metadata.views is not None:
        return "Its accuracy was not measured."
    return "The run was stopped before its first evaluation."


def _uncertainty(top1: float, count: int) -> str:
    return f"The standard error of the top-1 accuracy is {math.sqrt(top1 * (1 - top1) / count):.4f}."


def _calibration(calibration: Calibration) -> str:
    return (
        "The probabilities are calibrated by temperature scaling (Guo et al. 2017): the last layer's weights are "
        f"divided by {calibration.temperature:.3g}. Without it, the calibration error would be "
        f"{calibration.ece_before:.4f}. With the temperature fitted on one half of the pictures and the error "
        f"measured on the other, both ways, it is {calibration.ece_after:.4f}; the file's temperature is fitted on "
        "all of them."
    )


def _figure_keys(classes: int) -> list[str]:
    """Returns the metrics to show. With five classes or fewer, top-5 accuracy is always 1."""
    return [key for key in _FIGURES if key != "top5" or classes > 5]


def _quantization(figures: Mapping[str, Any], classes: int) -> str:
    """Writes the section that compares the quantized model with the float32 model it was made from."""
    rows = [
        *(
            (_FIGURES[key], f"{figures[f'{key}_float32']:.4f}", f"{figures[f'{key}_int8']:.4f}")
            for key in _figure_keys(classes)
        ),
        ("latency of one picture, ms", f"{figures['ms_float32']:.3g}", f"{figures['ms_int8']:.3g}"),
        ("pictures/s in batches of 64", f"{figures['rate_float32']:.0f}", f"{figures['rate_int8']:.0f}"),
        ("size, MB", f"{figures['bytes_float32'] / 1e6:.3g}", f"{figures['bytes_int8'] / 1e6:.3g}"),
    ]
    where = f" of {_plain(figures['dataset'])}" if "dataset" in figures else ""
    explanation = (
        "Weights are int8 per channel, activations are uint8, and ranges come from "
        f"{figures['calibration_pictures']} training pictures{where}. Weights are limited to ±64: processors without "
        "VNNI instructions add two products in 16 bits, which larger weights would overflow. Depthwise convolutions, "
        "which are computed otherwise, have weights up to ±127. Preprocessing, the first layer, the last layer and "
        "the softmax stay in float32. Accuracy was measured on "
        f"{figures['pictures']:,} validation pictures{where}, speed in onnxruntime with one thread on "
        f"{figures['processor']} (the fastest of several rounds)."
    )
    return f"## Quantization to int8\n\n{explanation}\n\n" + _table(("", "float32", "int8"), rows)


def _classes(evaluation: Mapping[str, Any]) -> str:
    """Writes the accuracy of the worst and best classes, or of all if they are few, and the confusions."""
    # All classes if both lists would overlap.
    ranked = [
        (record["name"], f"{record['top1']:.4f}", f"{record['count']:,}") for record in _ranked_classes(evaluation)
    ]
    if len(ranked) <= 2 * _RANKED:
        section = "## Classes from worst to best\n\n" + _table(("class", "top-1", "pictures"), ranked)
    else:
        pairs = zip(ranked[:_RANKED], ranked[: -_RANKED - 1 : -1], strict=True)
        header = ("worst", "top-1", "pictures", "best", "top-1", "pictures")
        section = "## Worst and best classes\n\n" + _table(header, [(*worst, *best) for worst, best in pairs])
    confused = _confusions(evaluation)
    if not confused:
        return section
    table = _table(("true class", "predicted class", "pictures", "of"), confused)
    return f"{section}\n\n## Most frequent confusions\n\n{table}"


def _ranked_classes(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the records of classes that have pictures, the worst first."""
    return sorted((record for record in evaluation["per_class"] if record["count"]), key=lambda record: record["top1"])


def _confusions(evaluation: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """Returns the most frequent confusions: true class, predicted class, how often, and pictures of the true class."""
    per_class = evaluation["per_class"]
    # A record of very many classes has no matrix.
    pairs = evaluation.get("confusions") or [
        (true, predicted, times)
        for true, row in enumerate(evaluation.get("confusion", ()))
        for predicted, times in enumerate(row)
        if times and true != predicted
    ]
    return [
        (per_class[true]["name"], per_class[predicted]["name"], times, per_class[true]["count"])
        for true, predicted, times in sorted(pairs, key=lambda pair: -pair[2])[:_RANKED]
    ]


def _names(names: Sequence[str], file: Mapping[str, Any]) -> str:
    """Lists the classes, or the first of very many."""
    listed, more = ", ".join(map(_plain, names[:_NAMED])), len(names) - _NAMED
    if more <= 0:
        return listed
    return f"{listed} and {more:,} more: the metadata of `{file['file']}` lists them all as `names`."


def _signature(file: Mapping[str, Any]) -> str:
    rows = [(value, "RGB from 0 to 255, not normalised") for value in file["inputs"]]
    rows += [(value, _OUTPUTS.get(value["name"], "")) for value in file["outputs"]]
    return _lines(
        ("name", "type", "shape", "meaning"),
        [(f"`{value['name']}`", value["type"], ", ".join(map(str, value["shape"])), text) for value, text in rows],
    )


def _limits(metadata: Metadata, file: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """Returns the limitations of the model, one paragraph each."""
    height, width = metadata.image_size
    datasets = dict.fromkeys(_plain(training.dataset) for training in metadata.trainings)
    limits = [
        f"It knows these {len(metadata.names)} classes and no others. The probabilities always add up to 1, so a "
        "picture of something else also gets one of these classes, often with a high probability. Nothing in the file "
        "detects this.",
        f"It sees {width}x{height} pixels. A picture of another size {_FITS[metadata.resize.mode]}. It predicts one "
        "class for the whole picture, not where an object is or how many there are.",
        f"It was trained only on {' and '.join(datasets)}. Image collections, above all from the web, show some "
        "places, people, objects and viewpoints far more often than others, and some of their labels are wrong; the "
        "model has learned these biases. Expect lower accuracy and overconfident probabilities on pictures from "
        "other cameras, places or times.",
        "Before you rely on it, evaluate it on your own pictures, in one folder per class: `python -m jaxcnn.evaluate "
        f"{file['file']} --data.source FOLDER --split all`. Where a mistake can harm somebody, let a person decide.",
    ]
    # Limitations that depend on the training, next to those that they belong to.
    if metadata.config.mirrors:
        limits.insert(2, "It was trained with horizontal flips, so it cannot tell left from right.")
    ranked = _ranked_classes(evaluation) if evaluation is not None else []
    if ranked:
        worst, best = ranked[0], ranked[-1]
        limits.insert(
            1,
            f"Its accuracy differs between classes: from {worst['top1']:.0%} for “{_plain(worst['name'])}” to "
            f"{best['top1']:.0%} for “{_plain(best['name'])}”.",
        )
    return limits


def _trainings(trainings: Sequence[Training]) -> str:
    """Writes the recipe of each training. Several are numbered in their order, and the last one comes first."""
    tables = [_table(("", ""), list(training.recipe.items())) for training in trainings]
    if len(tables) == 1:
        return tables[0]
    sections = [
        f"### Training {number}, on {_plain(training.dataset)}\n\n{table}"
        for number, (training, table) in enumerate(zip(trainings, tables, strict=True), start=1)
    ]
    return "\n\n".join(reversed(sections))


def _terms(trainings: Sequence[Training]) -> str:
    """Writes the terms of every data set behind the weights, the latest first."""
    terms = {training.dataset: training.license for training in reversed(trainings)}
    datasets = [f"{_plain(name)} ({_plain(license) or 'terms not recorded'})" for name, license in terms.items()]
    return f"The weights were trained on {', and before that on '.join(datasets)}. Use them only as these terms allow."


def _list(paragraphs: Sequence[str]) -> str:
    return "\n".join(f"- {paragraph}" for paragraph in paragraphs)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return _lines(header, [[_plain(cell) for cell in row] for row in rows])


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table whose cells are Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def _plain(text: Any) -> str:
    """Escapes what would end a cell or a line, or be markup, such as a tag, a link or a picture."""
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), " ".join(str(text).split()))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(escaped.split())}"'
