"""The memory that the server takes at most, as the section Memory of its README states it."""

from collections.abc import Mapping

from server.settings import Settings

_IDLE, _THREAD, _DOWNLOADS = 120e6, 32e6, 1e6


def with_environment(variables: Mapping[str, str | None]) -> Settings:
    """Returns the settings with these variables; variables of other programs are ignored."""
    limits = {
        name: int(variables[variable] or "")
        for name in Settings.__dataclass_fields__
        if name.startswith("max_") and (variable := f"JAXCNN_{name.upper()}") in variables
    }
    return Settings(**limits)


def most_memory(settings: Settings, threads: int) -> float:
    """Returns bytes, without what open connections take."""
    per_thread = _THREAD + 3 * settings.max_body_bytes
    return _IDLE + 2 * settings.max_buffer_bytes + settings.max_decode_bytes + threads * per_thread + _DOWNLOADS
