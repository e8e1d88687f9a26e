import asyncio
import json

import pytest

from server.app import create_app


@pytest.mark.parametrize("state", [{}, {"state": {}}])
def test_without_a_lifespan_the_response_says_so(state):
    async def send(message):
        sent.append(message)

    sent = []
    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": [], **state}
    asyncio.run(create_app()(scope, None, send))
    start, body = sent
    assert start["status"] == 503
    assert "started with `--lifespan off`" in json.loads(body["body"])["error"]
