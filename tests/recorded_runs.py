"""Workdirs as trainings leave them, written without training."""

import csv
import dataclasses
import json

from jaxcnn.config import Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.data import Fingerprint
from jaxcnn.run.workdir import Classes, Workdir

CONFIG = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(4,), blocks=(0,)), epochs=2, batch_size=10)
CLASSES = Classes(("cat", "dog"), (), "pets", "MIT")


def write_run(folder, *, answers="cccccccc" + "dddddddd", finished=True, keep=True, **changes):
    """Writes the workdir of a run on eight pictures of cats and eight of dogs.

    Args:
      folder: the workdir.
      answers: the predicted class of each picture, by its first letter.
      finished: whether the best checkpoint was measured and exported.
      keep: whether there are predictions for each picture.
      changes: settings; `learning_rate` is that of the optimizer, `note` the note.
    """
    note, rate = changes.pop("note", ""), changes.pop("learning_rate", 0.1)
    workdir = Workdir(folder)
    workdir.record(dataclasses.replace(CONFIG, optim=OptimConfig(learning_rate=rate), **changes), CLASSES)
    workdir.record_pictures(Fingerprint(train=40, validation=16, labels="ab", pixels="cd", side=8))
    if note:
        workdir.note.write_text(note)
    names = {"c": "cat", "d": "dog"}
    rows = [
        (f"{true}/{i}.png", names[true], names[answer])
        for i, (true, answer) in enumerate(zip("c" * 8 + "d" * 8, answers, strict=True))
    ]
    top1 = sum(true == predicted for _, true, predicted in rows) / 16
    records = []
    for epoch in (1, 2):
        about = {"step": 4 * epoch, "epoch": epoch, "time": 1e9}
        records.append(about | {"kind": "train", "loss": 1 / epoch, "top1": 0.5, "learning_rate": rate,
                                "images_per_second": 20.0, "resolution": 8})  # fmt: skip
        records.append(about | {"kind": "validation", "loss": 2 / epoch, "top1": top1 / 3 * (epoch + 1), "top5": 1.0,
                                "ece": 0.1})  # fmt: skip
    workdir.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        evaluation = {"top1": top1, "top5": 1.0, "loss": 0.25, "ece": 0.05, "count": 16, "step": 8, "per_class": []}
        workdir.evaluation.write_text(json.dumps(evaluation))
        workdir.onnx.write_bytes(b"model")
        workdir.onnx.with_suffix(".json").write_text(json.dumps({"step": 8}))
    if keep:
        with (folder / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "true_class", "predicted_class"), *rows])
    return folder
