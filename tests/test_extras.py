"""The command that installs an extra, where the package is installed and in a clone."""

import shlex
import sys

import pytest

from jaxcnn import extras


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """The only folder in which Python finds installed packages."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_an_installed_package_is_named(packages):
    (packages / "jaxcnn-1.0.dist-info").mkdir()
    (packages / "jaxcnn-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxcnn\nVersion: 1.0\n")
    assert extras.install_command("mlflow") == "pip install 'jaxcnn[mlflow]'"


def test_a_clone_is_named_where_the_package_is_not_installed(packages, monkeypatch, tmp_path):
    clone = tmp_path / "my clone"
    monkeypatch.setattr(extras, "CLONE", clone)
    assert extras.install_command("mlflow") == "pip install 'jaxcnn[mlflow]'"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    assert shlex.split(extras.install_command("mlflow")) == ["pip", "install", f"{clone}[mlflow]"]


def test_this_is_a_clone():
    assert (extras.CLONE / "pyproject.toml").exists()
