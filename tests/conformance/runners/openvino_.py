"""OpenVINO on the CPU, in float32; by default it may compute in bfloat16."""

import openvino
from common import main


def open_model(path, outputs):
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled({"image": images})["logits"]


main(open_model)
