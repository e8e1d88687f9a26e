"""Export any function of arrays in JAX, and trained classifiers in particular, to one verified ONNX file."""

import os
from typing import TYPE_CHECKING, Any

from export.errors import UnsupportedError, VerificationError

if TYPE_CHECKING:
    from export.converter import to_onnx
    from export.workdir import export_workdir

# onnxruntime would send usage data to Microsoft, and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["UnsupportedError", "VerificationError", "export_workdir", "to_onnx"]


def __getattr__(name: str) -> Any:
    """Imports functions on first use: errors need no JAX, and the converter no jaxcnn."""
    if name == "to_onnx":
        from export.converter import to_onnx

        return to_onnx
    if name == "export_workdir":
        from export.workdir import export_workdir

        return export_workdir
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
