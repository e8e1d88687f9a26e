"""A client that openapi-python-client generated, against a running server.

`PYTHON generated_client.py PORT MODEL PICTURE`, in the folder that has the generated package `generated`.
"""

import base64
import sys
from io import BytesIO
from pathlib import Path

sys.path.insert(0, ".")

from generated import Client
from generated.api.native import predict
from generated.api.open_inference_protocol import v2_infer, v2_model_statistics
from generated.models import Error, InferenceRequest, Picture, Pictures
from generated.types import File


def main(port: str, model: str, picture: bytes) -> None:
    client = Client(base_url=f"http://127.0.0.1:{port}")
    text = base64.b64encode(picture).decode()
    for body in (Picture(image=text), File(payload=BytesIO(picture))):
        found = predict.sync(client=client, body=body, top_k=2)
        assert found.predicted_class == "red", found
        assert found.top_predictions[0].class_ == "red"
        assert len(found.top_predictions) == 2
    several = predict.sync(client=client, body=Pictures(images=[text, text]))
    assert [one.predicted_class for one in several] == ["red", "red"]
    assert isinstance(predict.sync(client=client, body=Picture(image="no picture")), Error)

    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    request = InferenceRequest.from_dict({"id": "seven", "inputs": [tensor]})
    found = v2_infer.sync(model, client=client, body=request)
    assert (found.model_name, found.id) == (model, "seven"), found
    assert v2_model_statistics.sync(model, client=client).to_dict()["model_stats"][0]["name"] == model


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
    print("ok")
