"""Responses that are the same for every request until the model changes: made once, and recognised by their ETag."""

import hashlib
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response


def etag_of(digest: str) -> str:
    """Returns the ETag of content with this SHA-256."""
    return f'"{digest[:32]}"'


def is_known(request: Request, etag: str) -> bool:
    """Whether the client has the content of this ETag."""
    known = request.headers.get("if-none-match", "").replace("W/", "")
    return known.strip() == "*" or etag in [tag.strip() for tag in known.split(",")]


class Prepared:
    """The body of a response, with its headers."""

    def __init__(self, body: bytes, *, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        self._body = body
        self._media_type = media_type
        etag = etag_of(hashlib.sha256(body).hexdigest())
        self._headers = {"Cache-Control": "no-cache", "ETag": etag, **(headers or {})}

    def respond(self, request: Request) -> Response:
        """Returns the response; 304 without a body if the client has this one."""
        if is_known(request, self._headers["ETag"]):
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers, media_type=self._media_type)


class PreparedResponses:
    """All prepared responses, each made by the first request for it."""

    def __init__(self) -> None:
        self._by_name: dict[str, Prepared] = {}

    def get(self, name: str, make: Callable[[], Prepared]) -> Prepared:
        """Returns the response of this name, which `make` makes at the first call."""
        if name not in self._by_name:
            self._by_name[name] = make()
        return self._by_name[name]

    def clear(self) -> None:
        """Forgets all responses, because the model has changed."""
        self._by_name.clear()
