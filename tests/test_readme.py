"""The README's commands, run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pictures import make_picture, write_class_folders, write_tiny_imagenet_zip

from jaxcnn import weights
from jaxcnn.train import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHIPPED = weights.SHIPPED.relative_to(ROOT)
SETUP = """\
python3 -m venv .venv && . .venv/bin/activate
pip install --require-hashes -r requirements.lock
"""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str = "bash") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


def checkout(folder: Path) -> Path:
    """What a clone of the working tree as it stands would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This interpreter as `python`, and a home of its own so that nothing is read from earlier runs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HOME": str(folder)}


def bash(script: str, folder: Path, *, timeout: int = 300) -> str:
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("clone"))


def test_quick_start_is_two_blocks_that_set_up_alike():
    first, second = blocks("Quick start")
    assert first == SETUP + "python -m jaxcnn.train\n"
    assert second == SETUP + "python -m pytest\n"


def test_continuous_integration_runs_the_same_commands():
    script = (ROOT / ".ci" / "run").read_text()
    for line in blocks("Quick start")[1].replace(" && ", "\n").splitlines():
        assert f"\n{line}\n" in script.replace(" --quiet", "")
    assert "\npython -m pytest -m run\n" in script


def test_options_in_the_text_are_options():
    written = re.findall(r"`(--[a-z_]+\.no_[a-z_]+|--[a-z_]+\.[a-z_]+ [^`]+)`", README)
    assert "--model.no_cpu_kernels" in written
    for each in written:
        parse(each.split())


@pytest.mark.run
def test_the_main_job_learns_the_digits(clone):
    said = bash(blocks("Quick start")[0].removeprefix(SETUP), clone)
    top1 = float(re.findall(r"validation top-1 (\d\.\d+)", said)[-1])
    assert top1 >= 0.97, said
    assert "skipped" not in said
    named = re.findall(r"^\| (`.*?`) \|", section("Quick start"), re.MULTILINE)
    for name in re.findall(r"`(.*?)`", ", ".join(named)):
        assert list((clone / "runs" / "digits").glob(name)), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_main_job_from_nothing_but_python_and_pip(tmp_path):
    folder = checkout(tmp_path)
    said = bash(blocks("Quick start")[0], folder, timeout=1200)
    assert (folder / "runs" / "digits" / "model.onnx").exists(), said


@pytest.mark.run
def test_tiny_imagenet_from_a_zip(clone):
    write_tiny_imagenet_zip(clone / "tiny-imagenet-200.zip", train=90)
    (command,) = [line for block in blocks("Tiny ImageNet") for line in block.splitlines() if "--data.archive" in line]
    bash(f"{command} --epochs 1 --model.widths 8 --model.blocks 1", clone)
    assert (clone / "runs" / "tiny_imagenet" / "model.onnx").exists()


@pytest.fixture(scope="module")
def trained(clone):
    """A clone in which a model of one's own pictures was trained."""
    write_class_folders(clone / "pictures", count=80, size=48)
    write_class_folders(clone / "new_pictures", count=4, size=48, seed=80)
    make_picture(1, seed=1234, size=300).save(clone / "photo.jpg")
    for block in blocks("Your own pictures"):
        bash(block.replace("folder", "folder --epochs 4", 1), clone)
    return clone


@pytest.fixture(scope="module")
def exported(trained):
    for block in blocks("Export"):
        bash(block, trained)
    return trained


@pytest.mark.run
def test_fine_tuning(trained):
    if not (trained / SHIPPED).exists():
        (trained / SHIPPED).parent.mkdir(exist_ok=True)
        bash(f"python -m export runs/pictures -o {SHIPPED}", trained)
    for block in blocks("Fine-tune"):
        bash(block.replace("finetune", "finetune --epochs 1", 1), trained)
    for name in ("finetuned", "again"):
        assert (trained / "runs" / name / "model.onnx").exists()


@pytest.mark.run
def test_evaluation(trained):
    for block in blocks("Evaluate"):
        assert "top-1" in bash(block, trained)


@pytest.mark.run
def test_the_exported_file_runs_elsewhere(exported):
    (program,) = blocks("Export", "python")
    said = subprocess.run([sys.executable, "-c", program], cwd=exported, capture_output=True, text=True, check=True)
    assert re.search(r"^(cat|dog) [01]\.\d+$", said.stdout, re.MULTILINE), said


@pytest.mark.run
def test_the_endpoint_answers(exported):
    serve, *requests = blocks("Serve")
    server = subprocess.Popen(["bash", "-euc", f"exec env {serve}"], cwd=exported, env=environment(exported))
    try:
        wait_until_ready(server)
        answers = [bash(request, exported) for request in requests]
    finally:
        server.terminate()
        server.wait(30)
    assert answers
    assert all('"predicted_class"' in answer for answer in answers)


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def test_every_preset_is_in_the_readme():
    from jaxcnn.presets import PRESETS

    assert all(f"`{name}`" in README for name in PRESETS)
    assert np.all([f"--{word}" in README for word in ("data.source", "data.archive", "workdir")])
