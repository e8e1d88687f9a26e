"""Execution providers: what onnxruntime computes with, the processor or an accelerator."""

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from server.errors import StartError

CPU = "cpu"
"""The provider that is always there."""

PROVIDERS = {
    CPU: ("CPUExecutionProvider", "onnxruntime"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime on macOS"),
}
"""Values of JAXCNN_EXECUTION_PROVIDER: onnxruntime's name, and the package that has it."""


def parse(text: str) -> str:
    """Returns the provider of this name, if it is installed.

    Raises:
      ValueError: there is no such provider; the message ends a sentence that begins with "set it to".
      StartError: the installed onnxruntime does not have it.
    """
    if text not in PROVIDERS:
        raise ValueError(", ".join(PROVIDERS))
    available = ort.get_available_providers()
    installed = [name for name, (provider, _) in PROVIDERS.items() if provider in available]
    if text not in installed:
        package = PROVIDERS[text][1]
        raise StartError(
            f"JAXCNN_EXECUTION_PROVIDER is {text!r}, but the installed onnxruntime has only {', '.join(installed)}:"
            f" install the package {package} in its place, or set it to one of those."
        )
    return text


def arguments(name: str, threads: int) -> list[str | tuple[str, dict[str, Any]]]:
    """Returns the `providers` of a session: this one, then the CPU for operators that it lacks.

    Args:
      name: a key of `PROVIDERS`.
      threads: cores that one run may use; OpenVINO does not use the threads of the session.
    """
    if name == CPU:
        return [PROVIDERS[CPU][0]]
    options = {"num_of_threads": str(threads)} if name == "openvino" else {}
    return [(PROVIDERS[name][0], options), PROVIDERS[CPU][0]]


def check_used(name: str, used: Sequence[str]) -> None:
    """Refuses a session without its provider: onnxruntime goes on with the CPU if a library or the device is missing.

    Raises:
      StartError: it is not among the providers of the session.
    """
    if PROVIDERS[name][0] not in used:
        raise StartError(
            f"JAXCNN_EXECUTION_PROVIDER is {name!r}, but onnxruntime cannot use it on this machine: check that the"
            f" device and the libraries that the package {PROVIDERS[name][1]} requires are there, or set it to {CPU}."
        )
