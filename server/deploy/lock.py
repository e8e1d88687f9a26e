"""Prints the part of requirements.lock that one extra needs: `python server/deploy/lock.py EXTRA`, at the root.

The Dockerfile runs this before anything is installed, so it needs nothing but the standard library.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A requirement of pyproject.toml: its name, and the extras that it asks for.
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?")

# Each package of the lock begins a block; the comments at the end of the block list what requires it.
_BLOCK = re.compile(r"^(?=[\w.-]+==)", re.MULTILINE)
_PARENT = re.compile(r"^ +# +(?:via )?([\w.-]+)(?: .*)?$", re.MULTILINE)


def subset(project: str, lock: str, extra: str) -> str:
    """Returns the packages of a lock that the project with one extra needs, with their hashes.

    Args:
      project: the text of pyproject.toml.
      lock: the text of requirements.lock, as `uv pip compile` writes it.
      extra: name of the extra.

    Raises:
      ValueError: the project has no such extra, or the lock lacks a package.
    """
    blocks = {_normalize(block.split("==")[0]): block for block in _BLOCK.split(lock)[1:]}
    parents = {name: {_normalize(parent) for parent in _PARENT.findall(block)} for name, block in blocks.items()}
    needed = set(_direct(tomllib.loads(project)["project"], extra))
    if missing := needed - set(blocks):
        raise ValueError(f"requirements.lock has no {', '.join(sorted(missing))}: write it again.")
    # Add what the packages found so far require, until nothing is new.
    while new := {name for name in blocks if name not in needed and parents[name] & needed}:
        needed |= new
    return "".join(block for name, block in blocks.items() if name in needed)


def _direct(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yields the packages that the project and one of its extras name, through extras of extras."""
    extras = project["optional-dependencies"]
    if extra not in extras:
        raise ValueError(f"There is no extra {extra!r}: use one of {', '.join(extras)}.")
    for requirement in [*project["dependencies"], *extras[extra]]:
        found = _REQUIREMENT.match(requirement)
        assert found is not None
        if found[1] != project["name"]:
            yield _normalize(found[1])
        for further in found[2].split(",") if found[1] == project["name"] else ():
            yield from _direct(project, further)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        print(subset(Path("pyproject.toml").read_text(), Path("requirements.lock").read_text(), sys.argv[1]), end="")
    except (IndexError, OSError, ValueError) as problem:
        sys.exit(f"server/deploy/lock.py: {problem if sys.argv[1:] else 'name an extra, such as serve.'}")
