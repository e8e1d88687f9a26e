"""The version of the package."""

import subprocess
from pathlib import Path

__version__ = "0.1.0"


def describe_version() -> str:
    """Returns the version, in a git checkout with the commit: `0.1.0+2d41c5389f31`.

    It ends in `.changed` if tracked files differ from the commit.
    """
    try:
        # A package that is installed somewhere in another repository is not tracked there.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git("describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=.changed")
    except (OSError, subprocess.SubprocessError):  # No git, no checkout, or somebody else's.
        return __version__
    return f"{__version__}+{commit}"


def _git(*arguments: str) -> str:
    """Returns what git prints about the folder of the package."""
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)  # noqa: S603 fixed arguments
    return done.stdout.strip()
