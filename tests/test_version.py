"""The version that a run records, in real git repositories."""

import os
import shutil
import subprocess
import sys

import pytest

from jaxcnn import version


@pytest.fixture(autouse=True)
def no_settings_of_git(monkeypatch):
    """Hides the user's settings, such as signed commits, and the repository of a hook that runs these tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the module, in a git repository that does not track it."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    shutil.copy(version.__file__, folder)
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "begin")
    return folder


def git(folder, *arguments):
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", "-C", folder, *names, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def describe(folder, environment=None):
    program = "import version; print(version.describe_version())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_checkout_is_described_by_its_commit(package):
    git(package, "add", "version.py")
    git(package, "commit", "--quiet", "--message", "add")
    git(package, "tag", "--annotate", "--message", "tag", "a-tag")  # Tags do not matter.
    commit = git(package, "rev-parse", "--short=12", "HEAD")
    assert describe(package) == f"{version.__version__}+{commit}"
    (package / "notes.txt").touch()
    assert describe(package) == f"{version.__version__}+{commit}"
    with (package / "version.py").open("a") as file:
        file.write("\n")
    assert describe(package) == f"{version.__version__}+{commit}.changed"


def test_an_installed_package_has_no_commit(package, tmp_path):
    # In a repository that does not track it, outside of all, and where there is no git.
    assert describe(package) == version.__version__
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(version.__file__, alone)
    assert describe(alone) == version.__version__
    assert describe(package, {"PATH": ""}) == version.__version__
