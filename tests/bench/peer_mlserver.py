"""MLServer with the same model file, in the Open Inference Protocol: it makes no batches of others.

`PYTHON tests/bench/peer_mlserver.py PORT MODEL`, with an interpreter that has mlserver,
onnxruntime, Pillow, and uvloop before 0.22, with which MLServer 1.7 does not start its processes.
"""

import asyncio
import json
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from peer_model import PeerModel, read_setting


class Classifier(MLModel):
    async def load(self) -> bool:
        self.model = PeerModel(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        answers = self.model.answer(StringCodec.decode_input(payload.inputs[0]))
        texts = StringCodec.encode_output("answer", [json.dumps(answer) for answer in answers], use_bytes=False)
        return InferenceResponse(model_name=self.name, outputs=[texts])


async def main(port: int, path: str) -> None:
    setting = read_setting()
    # Without `debug`, MLServer does not log each request in detail.
    common = Settings(
        http_port=port,
        parallel_workers=setting.workers,
        host="127.0.0.1",
        use_structured_logging=False,
        debug=False,
    )
    model = ModelSettings(
        name="model",
        implementation="peer_mlserver.Classifier",
        parameters={"uri": path},
        max_batch_size=setting.batch,
        max_batch_time=setting.wait_ms / 1000,
    )
    await MLServer(common).start([model])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
