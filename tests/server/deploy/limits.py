"""The memory that the server takes at most, as the section Memory of its README states it."""

import re
from collections.abc import Mapping
from pathlib import Path

import server
from server.settings import Settings

_THREAD, _DOWNLOADS = 32e6, 1e6
_CONNECTIONS = 1000


def with_environment(variables: Mapping[str, str | None]) -> Settings:
    """Returns the settings with these variables; variables of other programs are ignored."""
    limits = {
        name: int(variables[variable] or "")
        for name in Settings.__dataclass_fields__
        if name.startswith("max_") and (variable := f"JAXCNN_{name.upper()}") in variables
    }
    return Settings(**limits)


def most_memory(settings: Settings, threads: int) -> float:
    """Returns bytes, with the shipped model and 1,000 idle connections."""
    one_thread, several_threads, connection = _stated()
    idle = one_thread if threads == 1 else several_threads
    per_thread = _THREAD + 3 * settings.max_body_bytes
    bodies = 2 * settings.max_buffer_bytes + settings.max_decode_bytes
    return idle + bodies + threads * per_thread + _DOWNLOADS + _CONNECTIONS * connection


def _stated() -> tuple[float, float, float]:
    """Returns the idle memory with one thread and with several, and that of an idle connection, in bytes."""
    text = " ".join((Path(server.__file__).parent / "README.md").read_text().split())
    idle = re.search(r"(\d+) MB with the shipped model on one thread and (\d+) MB on several", text)
    connection = re.search(r"for each open connection (\d+) KB", text)
    # A figure that is stated in other words must be found here, too.
    assert idle
    assert connection
    return int(idle[1]) * 1e6, int(idle[2]) * 1e6, int(connection[1]) * 1e3
