"""MLServer with the same model file and session settings, configured for two cores.

`PYTHON tests/bench/peer_mlserver.py PORT MODEL`, with an interpreter that has mlserver,
onnxruntime, Pillow, and uvloop before 0.22, with which MLServer 1.7 does not start its processes.
"""

import asyncio
import sys
from typing import Any

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.handlers import custom_handler
from peer_model import PeerModel


class Classifier(MLModel):
    async def load(self) -> bool:
        self.model = PeerModel(self.settings.parameters.uri)
        return True

    @custom_handler(rest_path="/predict")
    async def classify(self, payload: dict[str, Any]) -> dict[str, Any]:
        return self.model.answer(payload["image"])


async def main(port: int, path: str) -> None:
    server = MLServer(Settings(http_port=port, parallel_workers=2, host="127.0.0.1", use_structured_logging=False))
    settings = ModelSettings(name="model", implementation="peer_mlserver.Classifier", parameters={"uri": path})
    await server.start([settings])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
