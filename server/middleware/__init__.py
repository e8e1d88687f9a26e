"""ASGI middleware, outermost first: request log, CORS, server errors, API keys."""
