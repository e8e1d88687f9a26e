"""tract, a runtime in Rust."""

import tract
from common import main


def open_model(path):
    model = tract.onnx().load(path)
    names = [model.output_name(i) for i in range(model.output_count())]
    runnable = model.into_model().into_runnable()
    position = next((i for i, name in enumerate(names) if name == "logits"), 0)
    return lambda images: runnable.run([images])[position].to_numpy()


main(open_model)
