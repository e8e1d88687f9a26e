"""An ONNX file that keeps the contract of exported files and answers with the colours of a picture."""

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper

NAMES = ("red", "green", "blue")


def write_colours(path: Path, *, side: int = 8, names: tuple[str, ...] = NAMES, explained: bool = True) -> Path:
    """Writes a model whose logits are a tenth of the mean of each colour; returns its path.

    Its features are these means, its heatmap is the level of red.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["features"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["features", "ten"], ["logits"]),
        helper.make_node("Slice", ["float", "first", "second", "axis"], ["channel"]),
        helper.make_node("Squeeze", ["channel", "axis"], ["levels"]),
        helper.make_node("Div", ["levels", "most"], ["heatmap"]),
    ]
    shapes = {"logits": [3], "features": [3], "heatmap": [side, side]}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes.items()
        if explained or name == "logits"
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])],
        outputs,
        [
            helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]),
            helper.make_tensor("most", TensorProto.FLOAT, [], [255.0]),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
            helper.make_tensor("second", TensorProto.INT64, [1], [1]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = {"names": names, "image_size": [side, side], "resize": {"mode": "stretch", "filter": "bicubic"}}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in values.items()})
    onnx.save(model, path)
    return path
