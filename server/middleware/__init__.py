"""ASGI middleware. From the outside in: one-line start errors, request log, CORS, server errors, API keys."""
