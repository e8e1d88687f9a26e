"""The manifests of Kubernetes, rendered by the real Kustomize and validated against the schemas of several versions."""

import functools
import ipaddress
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.settings import Settings
from tests import custom_resources
from tests.server.deploy.limits import most_memory, with_environment

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "server" / "deploy" / "kubernetes"
RENDERED = ["base", "overlays/small", "overlays/monitoring", "training"]
VERSIONS = ["1.28.0", "1.33.0", "1.37.0"]
# Their schemas are no part of Kubernetes; what they embed is validated as what it is.
CUSTOM = {"ServiceMonitor", "JobSet", "InferenceService"}


@functools.cache
def render(name):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(yaml.safe_load_all(done.stdout))


def by_kind(name):
    return {manifest["kind"]: manifest for manifest in render(name)}


def service():
    """The InferenceService."""
    return yaml.safe_load((FOLDER / "kserve" / "inferenceservice.yaml").read_text())


def predictor():
    """The container of the InferenceService."""
    (container,) = service()["spec"]["predictor"]["containers"]
    return container


def server(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def environment(container):
    return {item["name"]: item.get("value") for item in container["env"]}


def mebibytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


def embedded(manifest):
    """What a custom resource embeds, as a manifest of Kubernetes itself."""
    if manifest["kind"] == "JobSet":
        (job,) = manifest["spec"]["replicatedJobs"]
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            "spec": job["template"]["spec"],
        }
    fields = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}
    pod = {key: value for key, value in manifest["spec"]["predictor"].items() if key not in fields}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RENDERED)
def test_manifests_are_valid(name, version):
    for manifest in render(name):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_custom_resources_are_valid(version):
    for manifest in (service(), by_kind("training")["JobSet"]):
        kubernetes_validate.validate(embedded(manifest), version, strict=True)


def test_a_mistake_would_be_found():
    deployment = json.loads(json.dumps(by_kind("base")["Deployment"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


@pytest.mark.run
@custom_resources.needs_definitions
@pytest.mark.parametrize("kind", ["InferenceService", "JobSet"])
def test_custom_resources_are_valid(kind):
    manifest = by_kind("training")["JobSet"] if kind == "JobSet" else service()
    assert custom_resources.find_errors(manifest) == []
    # A field that is not there would be found.
    manifest = manifest | {"spec": manifest["spec"] | {"replica": 1}}
    assert any("'replica'" in error for error in custom_resources.find_errors(manifest))


def test_kserve_knows_the_fields_of_the_service():
    models = pytest.importorskip("kserve.models", reason="the SDK of KServe is not installed")
    assert set(service()["spec"]["predictor"]) <= set(models.V1beta1PredictorSpec.attribute_map.values())


def test_kserve_makes_a_deployment_with_time_to_start():
    # Without Knative, which refuses a termination grace period.
    assert "terminationGracePeriodSeconds" in service()["spec"]["predictor"]
    assert service()["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    probes = [container["startupProbe"] for container in (predictor(), server(by_kind("base")["Deployment"]))]
    assert [probe["periodSeconds"] * probe["failureThreshold"] for probe in probes] == [600, 600]


@pytest.mark.parametrize("name", RENDERED[:3])
def test_everything_selects_the_pods_of_the_deployment(name):
    kinds = by_kind(name)
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", kinds["Deployment"]["metadata"]["name"])
    if "ServiceMonitor" in kinds:
        selector = kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= kinds["Service"]["metadata"]["labels"].items()


@pytest.mark.parametrize("name", RENDERED[:3])
def test_the_server_has_time_to_drain(name):
    deployment = by_kind(name)["Deployment"]
    pod, settings = deployment["spec"]["template"]["spec"], Settings()
    drain = int(environment(server(deployment))["JAXCNN_DRAIN_SECONDS"])
    longest = settings.read_seconds + settings.deadline_ms / 1000
    assert pod["terminationGracePeriodSeconds"] > drain + longest
    # It is still served while the pod is found not to be ready.
    probe = server(deployment)["readinessProbe"]
    assert drain > probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", RENDERED[:3])
def test_images_are_named_by_digest_and_pods_may_do_little(name):
    deployment = by_kind(name)["Deployment"]
    assert re.search(r"@sha256:[0-9a-f]{64}$", server(deployment)["image"])
    security = server(deployment)["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert by_kind(name)["NetworkPolicy"]["spec"]["egress"] == []


def test_settings_are_settings_of_the_server():
    names = {f"JAXCNN_{field.upper()}" for field in Settings.__dataclass_fields__} | {"FORWARDED_ALLOW_IPS"}
    for container in (*(server(by_kind(name)["Deployment"]) for name in RENDERED[:3]), predictor()):
        assert set(environment(container)) <= names


def test_overlays_of_the_readme_set_the_image(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    blocks = re.findall(
        r"^```\n(resources: .*?)^```", (FOLDER.parent / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 2
    for number, text in enumerate(blocks):
        overlay = tmp_path / "kubernetes" / "overlays" / str(number)
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(text.replace("DIGEST", "a" * 64))
        rendered = "\n".join(map(json.dumps, render(overlay)))
        assert re.findall(r'"image": "([^"]*)"', rendered) == [f"REPOSITORY@sha256:{'a' * 64}"]
    assert '"--epochs", "40"' in rendered


def test_proxies_of_a_cluster_name_the_client():
    for container in (server(by_kind("base")["Deployment"]), predictor()):
        networks = [*map(ipaddress.ip_network, environment(container)["FORWARDED_ALLOW_IPS"].split(","))]
        for text, is_trusted in {
            "10.0.0.1": True,
            "fd00::1": True,
            "198.51.100.1": False,
            "2001:db8::1": False,
        }.items():
            assert any(ipaddress.ip_address(text) in network for network in networks) is is_trusted


@pytest.mark.parametrize("name", [*RENDERED[:3], "kserve"])
def test_what_the_server_may_take_is_within_the_limit_of_its_memory(name):
    container = predictor() if name == "kserve" else server(by_kind(name)["Deployment"])
    limits = container["resources"]["limits"]
    settings, cpus = with_environment(environment(container)), limits["cpu"]
    threads = 1 if cpus.endswith("m") else int(cpus)
    assert most_memory(settings, threads) < mebibytes(limits["memory"]) * 2**20
    # The largest picture of the kind that takes most memory is not refused.
    assert 21 * settings.max_pixels + 1_000_000 <= settings.max_decode_bytes


def test_training_resumes_from_its_volume():
    (job,) = by_kind("training")["JobSet"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    workdir = container["args"][container["args"].index("--workdir") + 1]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (volume,) = (item for item in pod["volumes"] if item["name"] == mounted["/training"])
    assert workdir.startswith("/training/")
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert claim == by_kind("training")["PersistentVolumeClaim"]["metadata"]["name"]


def test_only_a_mistake_of_the_user_ends_a_training_at_once():
    spec = by_kind("training")["JobSet"]["spec"]
    (job,) = spec["replicatedJobs"]
    lost, mistake = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (lost["action"], lost["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (mistake["action"], mistake["onExitCodes"]["values"]) == ("FailJob", [2])
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert mistake["onExitCodes"]["containerName"] == container["name"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # Other failures, such as a bucket that does not answer (status 75), start it again.
    assert job["template"]["spec"]["backoffLimit"] * spec["failurePolicy"]["maxRestarts"] > 0
