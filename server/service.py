"""Decodes and classifies on threads of its own, for no more requests at a time than there is room for."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.exceptions import HTTPException

from server import payload, picture
from server.errors import PictureError
from server.model import Model
from server.settings import Settings


class Service:
    """What a running server holds: the model, its threads, and the count of requests inside."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self.model = model
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="predict")
        self._requests = 0

    def close(self) -> None:
        """Finishes what is under way."""
        self._threads.shutdown()

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Holds one of the places for requests.

        Raises:
            HTTPException: 503, all are taken.
        """
        if self._requests >= self.settings.max_requests:
            raise HTTPException(503, "The server is full: try again in a second.", headers={"Retry-After": "1"})
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def predict(self, content_type: str, body: bytes, *, top_k: int) -> Any:
        """Answers a body: one prediction, or a list of them in the order of the pictures.

        Raises:
            HTTPException: the body is not what its content type promises, or holds no pictures.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._predict, content_type, body, top_k)

    def _predict(self, content_type: str, body: bytes, top_k: int) -> Any:
        request = payload.parse(content_type, body, max_images=self.settings.max_images)
        images = [
            self._decode(f"images[{i}]: " if request.is_list else "", each) for i, each in enumerate(request.pictures)
        ]
        predictions = [self._describe(each, top_k) for each in self.model.probabilities(np.stack(images))]
        return predictions if request.is_list else predictions[0]

    def _decode(self, place: str, data: bytes) -> npt.NDArray[np.uint8]:
        try:
            return picture.decode(
                data, height=self.model.height, width=self.model.width, max_pixels=self.settings.max_pixels
            )
        except PictureError as error:
            raise HTTPException(400, f"{place}{error}.") from error

    def _describe(self, probabilities: npt.NDArray[np.float32], top_k: int) -> dict[str, Any]:
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        top = [{"class": self.model.names[i], "prob": float(probabilities[i])} for i in best]
        return {"predicted_class": top[0]["class"], "top_predictions": top}
