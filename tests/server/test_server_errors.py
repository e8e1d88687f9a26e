import asyncio
import re
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from server.errors import StartError
from server.middleware.errors import OneLineStartErrors


@pytest.mark.parametrize(
    ("error", "report"),
    [(StartError("what is wrong"), "^what is wrong$"), (RuntimeError("a bug"), "(?s)^Traceback.*a bug")],
)
def test_only_a_start_error_is_reported_without_its_traceback(error, report):
    @asynccontextmanager
    async def lifespan(app):
        raise error
        yield

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    sent = []
    app = Starlette(lifespan=lifespan, middleware=[Middleware(OneLineStartErrors)])
    with pytest.raises(type(error)):
        asyncio.run(app({"type": "lifespan", "state": {}}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert re.search(report, sent[0]["message"])
