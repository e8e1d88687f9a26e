"""tract, a runtime in Rust."""

import tract
from common import main


def open_model(path, outputs):
    runnable = tract.onnx().load(path).into_model().into_runnable()
    position = outputs.index("logits")
    return lambda images: runnable.run([images])[position].to_numpy()


main(open_model)
