"""Lines as a run writes them into its log."""

import json


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


LINES = [line for step in (10, 20, 30) for line in (train_line(step), validation_line(step, top1=step / 40))]
