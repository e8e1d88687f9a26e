"""`python -m server.deploy kserve` with an imitation of kubectl, which keeps one manifest in a file."""

import json
import stat

import pytest

from server.deploy import __main__ as deploy
from server.deploy import kserve

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

IMAGE = f"registry.example.org/jaxcnn@sha256:{'a' * 64}"
NEXT_IMAGE = IMAGE.replace("a" * 64, "b" * 64)
KUBECTL = """#!/usr/bin/env python3
import json, pathlib, sys
kept, calls = pathlib.Path("{folder}/kept.json"), pathlib.Path("{folder}/calls")
command, broken = sys.argv[1], pathlib.Path("{folder}/broken").exists()
with calls.open("a") as file:
    print(command, file=file)
if command == "apply":
    manifest = json.load(sys.stdin)
    applied = {{"kubectl.kubernetes.io/last-applied-configuration": json.dumps(manifest)}}
    manifest["metadata"]["annotations"] = applied
    manifest["status"] = {{"url": "https://birds.example.org", "conditions": [{{"type": "Ready", "status": "True"}}]}}
    kept.write_text(json.dumps(manifest))
elif command == "get" and kept.exists():
    print(kept.read_text())
elif command == "wait" and broken:
    sys.exit("error: timed out waiting for the condition on inferenceservices/jaxcnn")
elif command == "delete":
    kept.unlink(missing_ok=True)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder in which the imitation keeps what is applied."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(folder=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def run(capsys, *arguments):
    status = deploy.main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def kept_image(cluster):
    manifest = json.loads((cluster / "kept.json").read_text())
    return manifest["spec"]["predictor"]["containers"][0]["image"]


def test_create_update_and_delete(cluster, capsys):
    assert run(capsys, "status", "--kserve")[:2] == (1, "There is no InferenceService jaxcnn.\n")
    status, printed, error = run(capsys, "kserve", "--image", IMAGE)
    assert (status, error) == (0, "")
    assert printed.endswith("deployed\n  Url: https://birds.example.org\nit is ready\n")
    assert "already up to date\n" in run(capsys, "kserve", "--image", IMAGE)[1]
    assert (cluster / "calls").read_text().split().count("apply") == 1
    assert "deployed\n" in run(capsys, "kserve", "--image", NEXT_IMAGE)[1]
    assert kept_image(cluster) == NEXT_IMAGE
    assert run(capsys, "destroy", "--kserve")[:2] == (0, "destroyed\n")
    assert not (cluster / "kept.json").exists()


def test_an_update_that_does_not_become_ready_is_taken_back(cluster, capsys):
    (cluster / "broken").touch()
    status, _, error = run(capsys, "kserve", "--image", IMAGE)
    assert status == 1
    assert error == (
        "server.deploy: The service jaxcnn does not become ready: see `kubectl describe inferenceservice jaxcnn`.\n"
    )
    (cluster / "broken").unlink()
    run(capsys, "kserve", "--image", IMAGE)
    (cluster / "broken").touch()
    status, _, error = run(capsys, "kserve", "--image", NEXT_IMAGE)
    assert status == 1
    assert "did not become ready, and is as it was before" in error
    assert kept_image(cluster) == IMAGE


def test_a_dry_run_asks_no_cluster(cluster, capsys):
    status, printed, _ = run(capsys, "kserve", "--image", IMAGE, "--dry-run")
    assert status == 0
    assert IMAGE in printed
    assert "Its price is that of the cluster's nodes." in printed
    assert not (cluster / "calls").exists()


def test_parameters_are_where_kserve_reads_them():
    values = {"MinReplicas": "0", "MaxReplicas": "9", "Cpu": "500m", "Memory": "300Mi", "Model": "/mnt/models/a.onnx"}
    predictor = kserve.render("birds", {"Image": IMAGE, **values})["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (0, 9)
    assert container["resources"]["requests"] == container["resources"]["limits"] == {"cpu": "500m", "memory": "300Mi"}
    assert {"name": "JAXCNN_MODEL", "value": "/mnt/models/a.onnx"} in container["env"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "jaxcnn:latest"], "--image needs the image's digest"),
        (["--image", IMAGE, "--set", "Cpu=much"], "Cpu is 'much': it must match "),
        (["--image", IMAGE, "--set", "Gpu=1"], "kserve has no parameter Gpu: use one of Image, MinReplicas, "),
        (["--image", IMAGE, "--set", "MinReplicas=5"], "MinReplicas is above MaxReplicas, which is 4: lower it."),
    ],
)
def test_a_mistake_is_reported_in_one_line(capsys, arguments, complaint):
    status, _, error = run(capsys, "kserve", *arguments)
    assert status == 1
    assert error.startswith(f"server.deploy: {complaint}")
    assert error.count("\n") == 1


def test_without_kubectl_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(capsys, "status", "--kserve")[2].startswith("server.deploy: kubectl is not installed: install it")


def test_what_kubectl_refuses_is_one_line(cluster, capsys):
    (cluster / "kubectl").write_text(
        "#!/bin/sh\necho 'E1 attempt' >&2\necho 'The connection was refused' >&2\nexit 1\n"
    )
    assert run(capsys, "status", "--kserve")[2] == "server.deploy: kubectl refuses: The connection was refused\n"
