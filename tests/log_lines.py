"""Lines of `metrics.jsonl` as a run writes them, and the records that are read from them."""

import json

from jaxcnn.run.metrics_log import TrainRecord, ValidationRecord


def train_line(step, **values):
    defaults = {
        "epoch": step / 10,
        "loss": 1.0,
        "top1": 0.5,
        "learning_rate": 0.1,
        "images_per_second": 20,
        "time": 1e9,
    }
    return json.dumps({"kind": "train", "step": step} | defaults | values)


def validation_line(step, **values):
    defaults = {"epoch": step / 10, "loss": 1.0, "top1": 0.5, "top5": 1.0, "ece": 0.1, "time": 1e9}
    return json.dumps({"kind": "validation", "step": step} | defaults | values)


def train_record(step, **values):
    defaults = {"epoch": step / 10, "loss": 1.0, "top1": 0.5, "learning_rate": 0.1, "images_per_second": 20.0}
    return TrainRecord(step=step, **defaults | values)


def validation_record(step, **values):
    defaults = {"epoch": step / 10, "loss": 1.0, "top1": 0.5, "top5": 1.0, "ece": 0.1}
    return ValidationRecord(step=step, **defaults | values)


LINES = [line for step in (10, 20, 30) for line in (train_line(step), validation_line(step, top1=step / 40))]
