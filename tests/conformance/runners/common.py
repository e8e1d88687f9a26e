"""Shared by the programs of the runtimes: `main(open_model)` runs a folder of models and prints a JSON line for each.

It needs NumPy only, and runs in the environments of the runtimes, whose Python may be old.
"""

import glob
import json
import os
import sys

import numpy as np


def main(open_model):
    """Runs all models of the folder that the command line names.

    Args:
      open_model: `open_model(path, outputs)`, with the names of the model's outputs in order, returns a function from
        uint8 pictures [n, side, side, 3] to logits [n, classes].
    """
    for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.onnx"))):
        stem = path[: -len(".onnx")]
        with open(stem + ".json") as file:
            facts = json.load(file)
        images = np.fromfile(stem + ".image", np.uint8).reshape(facts["shape"])
        try:
            run = open_model(path, facts["outputs"])
            # Two batch sizes, one after the other: the size is symbolic.
            logits = np.concatenate([run(images[:1]), run(images[1:])])
            print(json.dumps({"file": os.path.basename(stem), "logits": np.asarray(logits, np.float64).tolist()}))
        except Exception as error:
            print(json.dumps({"file": os.path.basename(stem), "error": f"{type(error).__name__}: {error}"[:300]}))
        sys.stdout.flush()
