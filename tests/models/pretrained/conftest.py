"""Peers: the original implementations, in an environment with torch."""

import os

import pytest


@pytest.fixture(scope="session")
def peers() -> str:
    """The Python of an environment with torch and the original implementations; skips the test without one."""
    python = os.environ.get("JAXCNN_PEERS")
    if not python:
        pytest.skip(
            "JAXCNN_PEERS is not set; give it the Python of an environment with torch, timm, torchvision and "
            "efficientnet-lite-pytorch"
        )
    return python
