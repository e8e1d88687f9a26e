"""The contributor's kit: what is built, what is locked, and that every place runs the same gate."""

import hashlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tests.reference

ROOT = Path(__file__).parent.parent
PACKAGES = ("jaxcnn", "export", "server")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def tracked_files() -> list[str]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def copy_tree(folder: Path) -> Path:
    """Copies what a clone would hold; the copies have times and permissions of their own."""
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def build(source: Path, target: str, output: Path) -> Path:
    done = run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", output, cwd=source)
    assert done.returncode == 0, done.stderr
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_files(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_packages_and_nothing_else(wheel_files):
    tracked = {name for name in tracked_files() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert {name for name in wheel_files if ".dist-info/" not in name} == tracked
    assert {f"{package}/py.typed" for package in PACKAGES} <= wheel_files
    assert {"jaxcnn/run/templates/report.html", "server/page/index.html", "server/page/page.js"} <= wheel_files
    assert {"server/models/tiny_imagenet.onnx", "server/models/tiny_imagenet.safetensors"} <= wheel_files
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)


def test_the_wheel_is_reproducible(wheel, tmp_path):
    copy = build(copy_tree(tmp_path / "another place"), "wheel", tmp_path / "wheel")
    assert copy.name == wheel.name
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


@pytest.mark.run
def test_a_wheel_of_the_sdist_is_the_same(wheel, tmp_path):
    sdist = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked_files()) <= names
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path / "wheel")
    assert again.read_bytes() == wheel.read_bytes()


def test_metadata_of_the_project():
    assert PROJECT["authors"]
    assert {"Changelog", "Documentation", "Homepage", "Issues", "Repository"} == PROJECT["urls"].keys()
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert PROJECT["classifiers"] == sorted(PROJECT["classifiers"])
    changelog = PROJECT["urls"]["Changelog"].partition("/blob/main/")[2]
    assert "## Unreleased" in (ROOT / changelog).read_text()


def test_every_requirement_is_locked_with_hashes():
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE))
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for name in ("predict", "export", "train", "serve", "dev") for line in extras[name]]
    for requirement in [*wanted, *map(Requirement, PROJECT["dependencies"])]:
        if requirement.name != "jaxcnn":
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(re.findall(r"^\S+==", LOCK, re.MULTILINE)) > 100
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_an_image_is_published_only_of_a_version_that_has_passed_the_tests():
    folder = ROOT / ".github" / "workflows"
    image, release = (yaml.safe_load((folder / name).read_text()) for name in ("image.yml", "release.yml"))
    jobs = image["jobs"]
    assert set(jobs["publish"]["needs"]) == {"build", "ci"}
    assert jobs["ci"]["uses"] == release["jobs"]["ci"]["uses"]
    assert jobs["ci"]["if"] == jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/')"
    (check,) = (step for step in release["jobs"]["build"]["steps"] if step.get("name", "").startswith("Check that the"))
    assert {**check, "if": jobs["publish"]["if"]} in jobs["build"]["steps"]


def test_workflows_pin_actions_and_run_the_scripts_of_the_repository():
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "fuzz.yml", "image.yml", "release.yml"}
    for path in WORKFLOWS:
        for uses in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+|\$/\.github/workflows/ci\.yml", uses), (
                f"{path}: {uses}"
            )
    steps = yaml.safe_load(WORKFLOWS[0].read_text())["jobs"]["run"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    scripts = set(re.findall(r"run: (tests/\w+|\.ci/run)", "".join(path.read_text() for path in WORKFLOWS)))
    assert scripts == {".ci/run", "tests/build", "tests/image", "tests/versions"}
    for script in (*scripts, "tests/check"):
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"


def test_continuous_integration_runs_the_gate_first():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    first = lines.index("tests/check")
    assert lines[first : first + 3] == ["tests/check", "python -m pytest", "python -m pytest -m run"]
    assert "    python -m pytest -m drill" in lines[first + 3 :]
    # In a fresh environment: a developer's .venv may have more packages.
    assert 'python3 -m venv "$folder/venv"' in lines
    assert "folder=$(mktemp -d)" in lines


def test_hooks_are_parts_of_the_gate():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    (parts,) = re.findall(r'^all="(.*)"$', (ROOT / "tests" / "check").read_text(), re.MULTILINE)
    hooks = [hook["entry"] for hook in repository["hooks"]]
    assert hooks == [f"tests/check {part}" for part in parts.split() if part != "reference"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["tests/check", "colour"], "tests/check: no part is called colour; the parts are: format "),
        (["tests/versions"], "usage: tests/versions lowest|newest "),
        (["tests/versions", "oldest"], "usage: tests/versions lowest|newest "),
        (["tests/build"], "usage: tests/build FOLDER\n"),
        ([sys.executable, "-m", "tests.reference"], "usage: python -m tests.reference FOLDER\n"),
    ],
)
def test_a_wrong_argument_of_a_script_is_named(command, message):
    done = run(*command)
    assert done.returncode != 0
    assert done.stderr.startswith(message)


def test_a_reference_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "jaxcnn").mkdir()
    (tmp_path / "jaxcnn" / "loop.html").write_text(
        '<section id="Run"></section><section id="Run.step"></section>'
        "<code>Run.step</code> <code>Run.stop</code> <code>jaxcnn.gone()</code> <code>model.onnx</code>"
        '<code><a href="x">jaxcnn.loop.Run</a></code>'
    )
    assert tests.reference.broken_references(tmp_path) == ["jaxcnn.loop: Run.stop", "jaxcnn.loop: jaxcnn.gone"]
