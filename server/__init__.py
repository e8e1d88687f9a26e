"""Serves an exported image classifier over HTTP: `uvicorn server.app:app`."""

import os

# onnxruntime would send usage data to Microsoft, and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
