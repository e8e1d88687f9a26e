"""`python -m server.deploy kserve` with an imitation of kubectl, which keeps one manifest in a file."""

import json
import stat

import pytest

from server.deploy import __main__ as deploy
from server.deploy import health, kserve

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

IMAGE = f"registry.example.org/jaxcnn@sha256:{'a' * 64}"
NEXT_IMAGE = IMAGE.replace("a" * 64, "b" * 64)
MODEL = f"a=https://me:secret@example.org/a.onnx?token=secret#sha256={'0' * 64}"
# As KServe, it follows with the Deployment later, makes cpu canonical, and notes the generation of the Deployment.
KUBECTL = """#!/usr/bin/env python3
import json, pathlib, sys
folder = pathlib.Path("{folder}")
kept, deployment, calls = folder / "kept.json", folder / "deployment.json", folder / "calls"
command, kind = sys.argv[1], sys.argv[2]
stays = {{name for name in ("broken", "ignored", "unready") if (folder / name).exists()}}

def read(path):
    return json.loads(path.read_text()) if path.exists() else None

def reconcile():
    (container,) = read(kept)["spec"]["predictor"]["containers"]
    container = {{**container, "env": [*container["env"], {{"name": "ADDED", "value": "by KServe"}}]}}
    for bound in container["resources"].values():
        bound["cpu"] = {{"0.5": "500m"}}.get(bound["cpu"], bound["cpu"])
    old = read(deployment)
    spec = {{"template": {{"spec": {{"containers": [container]}}}}}}
    if old is None or old["spec"] != spec:
        number = old["metadata"]["generation"] + 1 if old else 1
        deployment.write_text(json.dumps({{"metadata": {{"generation": number}}, "spec": spec}}))

with calls.open("a") as file:
    print(command, file=file)
if command == "apply":
    manifest, old = json.load(sys.stdin), read(kept)
    applied = {{"kubectl.kubernetes.io/last-applied-configuration": json.dumps(manifest)}}
    manifest["metadata"] |= {{"annotations": applied, "generation": old["metadata"]["generation"] + 1 if old else 1}}
    ready = "False" if "unready" in stays else "True"
    manifest["status"] = {{"url": "https://birds.example.org", "conditions": [{{"type": "Ready", "status": ready}}]}}
    kept.write_text(json.dumps(manifest))
elif command == "get" and kind == "inferenceservice" and kept.exists():
    print(kept.read_text())
elif command == "get" and kind == "deployment":
    assert sys.argv[3] == "jaxcnn-predictor"
    print(deployment.read_text() if deployment.exists() else "")
    if "ignored" not in stays:
        reconcile()
elif command == "wait":
    reconcile()
    if read(deployment)["metadata"]["generation"] < read(kept)["metadata"]["generation"]:
        sys.exit("error: timed out waiting for the condition on inferenceservices/jaxcnn")
elif command == "rollout":
    assert sys.argv[2:4] == ["status", "deployment/jaxcnn-predictor"]
    if "broken" in stays:
        sys.exit((folder / "broken").read_text() or "error: timed out waiting for the condition")
elif command == "delete":
    kept.unlink(missing_ok=True)
    deployment.unlink(missing_ok=True)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The folder in which the imitation keeps what is applied."""
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(folder=tmp_path))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(kserve, "_POLL_SECONDS", 0)
    return tmp_path


def run(capsys, *arguments):
    status = deploy.main(arguments)
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err
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


@pytest.mark.parametrize("message", ["", 'error: deployment "jaxcnn-predictor" exceeded its progress deadline'])
def test_an_update_that_does_not_become_ready_is_taken_back(cluster, capsys, message):
    (cluster / "broken").write_text(message)
    status, _, error = run(capsys, "kserve", "--image", IMAGE)
    assert status == 1
    assert error == (
        "server.deploy: The service jaxcnn does not become ready: see `kubectl describe inferenceservice jaxcnn`.\n"
    )
    (cluster / "broken").unlink()
    run(capsys, "kserve", "--image", IMAGE)
    # The old pods serve on, so that the service stays ready.
    (cluster / "broken").write_text(message)
    status, _, error = run(capsys, "kserve", "--image", NEXT_IMAGE)
    assert status == 1
    assert "did not become ready, and is as it was before" in error
    assert kept_image(cluster) == IMAGE


@pytest.mark.parametrize("setting", ["MaxReplicas=8", "Cpu=0.5", "Memory=512Mi", "Model=/mnt/models/a.onnx"])
def test_a_change_of_a_parameter_stays(cluster, capsys, setting):
    """The number of replicas is not in the Deployment, whose generation then stays behind the service's."""
    run(capsys, "kserve", "--image", IMAGE)
    status, printed, error = run(capsys, "kserve", "--image", IMAGE, "--set", setting)
    assert (status, error) == (0, "")
    assert "deployed\n" in printed
    assert (cluster / "calls").read_text().split().count("apply") == 2


def test_an_update_keeps_what_was_set_before(cluster, capsys):
    settings = ["MinReplicas=2", "Memory=512Mi", f"Model={MODEL}"]
    run(capsys, "kserve", "--image", IMAGE, "--set", *settings)
    printed = run(capsys, "kserve", "--image", NEXT_IMAGE, "--set", "MaxReplicas=8")[1]
    kept = f"MinReplicas=2, Cpu=1, Memory=512Mi, Model=a=https://***@example.org/a.onnx?***#sha256={'0' * 64}"
    assert f"Parameters stay as they are, unless --set says otherwise: {kept}\n" in printed
    expected = dict(setting.split("=", 1) for setting in settings) | {"MaxReplicas": "8", "Cpu": "1"}
    manifest = json.loads((cluster / "kept.json").read_text())
    assert kserve.parameters(manifest) == expected
    assert kept_image(cluster) == NEXT_IMAGE
    # The model in the image again.
    run(capsys, "kserve", "--image", NEXT_IMAGE, "--set", "Model=")
    assert kserve.parameters(json.loads((cluster / "kept.json").read_text())) == expected | {"Model": ""}


def test_what_others_have_applied_has_no_parameters():
    assert kserve.parameters({}) == {}
    assert kserve.parameters({"spec": {"predictor": {"sklearn": {}}}}) == {}


def deployment_of(manifest, *, image=IMAGE, cpu="1", memory="1Gi", more_env=()):
    """A Deployment as KServe makes it of a manifest, with differences."""
    (container,) = manifest["spec"]["predictor"]["containers"]
    resources = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}
    container = {**container, "image": image, "resources": resources, "env": [*container["env"], *more_env]}
    return {"spec": {"template": {"spec": {"containers": [{"name": "proxy", "image": IMAGE}, container]}}}}


def test_a_deployment_follows_a_manifest_if_its_container_is_the_same():
    manifest = kserve.render("jaxcnn", {"Image": IMAGE})
    assert kserve.has_container(deployment_of(manifest), manifest)
    assert kserve.has_container(deployment_of(manifest, cpu="1000m", memory="1024Mi"), manifest)
    assert kserve.has_container(deployment_of(manifest, more_env=[{"name": "ADDED", "value": "1"}]), manifest)
    assert not kserve.has_container(deployment_of(manifest, image=NEXT_IMAGE), manifest)
    assert not kserve.has_container(deployment_of(manifest, cpu="500m"), manifest)
    assert not kserve.has_container(deployment_of(manifest, memory="1Mi"), manifest)
    # What was set before, and is no longer.
    assert not kserve.has_container(
        deployment_of(manifest, more_env=[{"name": "JAXCNN_MODEL", "value": "a"}]), manifest
    )
    with_model = kserve.render("jaxcnn", {"Image": IMAGE, "Model": "a.onnx"})
    assert not kserve.has_container(deployment_of(manifest), with_model)


def test_a_change_that_kserve_does_not_follow_is_taken_back(cluster, capsys, monkeypatch):
    run(capsys, "kserve", "--image", IMAGE)
    (cluster / "ignored").touch()
    monkeypatch.setattr(health, "HEALTHY_SECONDS", 0.3)
    assert "is as it was before" in run(capsys, "kserve", "--image", NEXT_IMAGE)[2]
    assert kept_image(cluster) == IMAGE


def test_a_service_without_a_route_is_not_deployed(cluster, capsys, monkeypatch):
    (cluster / "unready").touch()
    monkeypatch.setattr(health, "HEALTHY_SECONDS", 0.3)
    assert "does not become ready" in run(capsys, "kserve", "--image", IMAGE)[2]


def test_a_dry_run_asks_no_cluster(cluster, capsys):
    status, printed, _ = run(capsys, "kserve", "--image", IMAGE, "--dry-run")
    assert status == 0
    assert IMAGE in printed
    assert "Its price is that of the cluster's nodes." in printed
    assert not (cluster / "calls").exists()


def test_parameters_are_where_kserve_reads_them():
    values = {"MinReplicas": "2", "MaxReplicas": "9", "Cpu": "500m", "Memory": "300Mi", "Model": "/mnt/models/a.onnx"}
    predictor = kserve.render("birds", {"Image": IMAGE, **values})["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 9)
    assert container["resources"]["requests"] == container["resources"]["limits"] == {"cpu": "500m", "memory": "300Mi"}
    assert {"name": "JAXCNN_MODEL", "value": "/mnt/models/a.onnx"} in container["env"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "jaxcnn:latest"], "--image needs the image's digest"),
        (["--image", IMAGE, "--set", "Cpu=much"], "Cpu is 'much': it must match "),
        (["--image", IMAGE, "--set", "MinReplicas=0"], "MinReplicas is '0': it must match "),
        (["--image", IMAGE, "--set", f"Model={MODEL} "], "Model is 'a=https://***@example.org/a.onnx?***#"),
        (["--image", IMAGE, "--set", MODEL[2:]], "kserve has no parameter https://***@example.org/a.onnx?***: use"),
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
