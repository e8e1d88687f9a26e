"""KServe's own client against a running server.

`PYTHON kserve_client.py PORT MODEL PICTURE`, with an interpreter that has kserve.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput


async def main(port: str, model: str, picture: bytes) -> None:
    url = f"http://127.0.0.1:{port}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, model)
    assert not await client.is_model_ready(url, "other")

    pixels = np.full((2, 8, 8, 3), (0, 0, 250), np.uint8)
    for binary in (False, True):
        for datatype, array in (("UINT8", pixels), ("FP32", pixels.astype(np.float32))):
            tensor = InferInput("image", list(array.shape), datatype)
            tensor.set_data_from_numpy(array, binary_data=binary)
            answer = await ask(client, url, model, tensor, binary)
            assert answer.argmax(1).tolist() == [2, 2], answer
    files = InferInput("image", [1], "BYTES")
    files.set_data_from_numpy(np.array([picture], object), binary_data=True)
    assert (await ask(client, url, model, files, True)).argmax(1).tolist() == [0]
    await client.close()


async def ask(
    client: InferenceRESTClient, url: str, model: str, tensor: InferInput, binary: bool
) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    request = InferRequest(
        model_name=model,
        request_id="7",
        infer_inputs=[tensor],
        request_outputs=[RequestedOutput("probabilities", {"binary_data": binary})],
    )
    response = await client.infer(url, request, model_name=model)
    assert (response.id, response.model_name) == ("7", model)
    return response.outputs[0].as_numpy()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()))
