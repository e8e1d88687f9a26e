import ports
import pytest


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
