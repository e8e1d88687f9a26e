"""Serves an exported image classifier over HTTP: `uvicorn server.app:app`."""
