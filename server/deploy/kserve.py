"""The server as an InferenceService of KServe, in the cluster that kubectl is set up for."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from server.deploy import health
from server.deploy.errors import DeployError
from server.deploy.template import check_image
from server.source import hide_secrets

_MANIFEST = Path(__file__).parent / "kubernetes" / "kserve" / "inferenceservice.yaml"

PARAMETERS = {
    "Image": ".*",
    "MinReplicas": "[1-9][0-9]{0,2}",
    "MaxReplicas": "[1-9][0-9]{0,2}",
    "Cpu": r"[0-9]+(\.[0-9]+|m)?",
    "Memory": "[0-9]+[MG]i",
    "Model": r"\S*",
}
"""The parameters, with a regular expression of their values. `Cpu` and `Memory` are quantities of Kubernetes.

Without Knative, KServe keeps at least one replica. Without a `Model`, it is the one in the image.
"""

_POLL_SECONDS = 2

# Kubernetes may write quantities otherwise than they are given: 0.5 as 500m, 1024Mi as 1Gi.
_POWERS = {"": 1, "k": 10**3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_UNITS = {"m": Decimal("0.001")} | {unit: Decimal(power) for unit, power in _POWERS.items()}

# How `kubectl rollout status` says that pods do not become ready.
_NOT_READY = ("timed out", "progress deadline")

# Where kubectl keeps the manifest that was applied last.
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def render(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Returns the manifest with a name and the values of parameters.

    Raises:
      DeployError: there is no such parameter, a value is not allowed, or the image has no digest.
    """
    for parameter, value in values.items():
        if parameter not in PARAMETERS:
            raise DeployError(f"kserve has no parameter {hide_secrets(parameter)}: use one of {', '.join(PARAMETERS)}.")
        if not re.fullmatch(PARAMETERS[parameter], value):
            raise DeployError(f"{parameter} is {hide_secrets(value)!r}: it must match {PARAMETERS[parameter]}.")
    check_image(values["Image"])
    manifest: dict[str, Any] = yaml.safe_load(_MANIFEST.read_text())
    manifest["metadata"]["name"] = name
    predictor = manifest["spec"]["predictor"]
    (container,) = predictor["containers"]
    container["image"] = values["Image"]
    for field in ("minReplicas", "maxReplicas"):
        predictor[field] = int(values.get(field[0].upper() + field[1:], predictor[field]))
    if predictor["minReplicas"] > predictor["maxReplicas"]:
        raise DeployError(f"MinReplicas is above MaxReplicas, which is {predictor['maxReplicas']}: lower it.")
    for resource in ("cpu", "memory"):
        for bound in container["resources"].values():
            bound[resource] = values.get(resource.capitalize(), bound[resource])
    if values.get("Model"):
        container["env"].append({"name": "JAXCNN_MODEL", "value": values["Model"]})
    return manifest


def parameters(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values of parameters with which a manifest was made, but for the image; empty if it is another's."""
    try:
        predictor = manifest["spec"]["predictor"]
        (container,) = predictor["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        limits = container["resources"]["limits"]
        found = {
            "MinReplicas": predictor["minReplicas"],
            "MaxReplicas": predictor["maxReplicas"],
            "Cpu": limits["cpu"],
            "Memory": limits["memory"],
            "Model": variables.get("JAXCNN_MODEL") or "",
        }
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: str(value) for name, value in found.items()}


@dataclass(frozen=True)
class InferenceService:
    """An InferenceService, which may not exist yet.

    Attributes:
      name: its name.
    """

    name: str

    def deploy(self, manifest: Mapping[str, Any]) -> bool:
        """Creates or updates the service, and returns to the manifest before if it does not become ready.

        Returns:
          False if the service was up to date already.

        Raises:
          DeployError: kubectl refuses, or the service does not become ready.
        """
        previous = self.applied()
        has_changed = previous is None or previous["spec"] != manifest["spec"]
        if has_changed:
            self._apply(manifest)
        if self._becomes_ready(manifest):
            return has_changed
        if previous is None or not has_changed:
            raise DeployError(
                f"The service {self.name} does not become ready: see `kubectl describe inferenceservice {self.name}`."
            )
        self._apply(previous)
        raise DeployError(
            f"The service {self.name} did not become ready, and is as it was before: see the log of its pods, and"
            " correct the image."
        )

    def describe(self) -> dict[str, Any] | None:
        """Returns the service as the cluster describes it; None if there is no service."""
        text = _kubectl("get", "inferenceservice", self.name, "--ignore-not-found", "--output", "json")
        return dict(json.loads(text)) if text.strip() else None

    def applied(self) -> dict[str, Any] | None:
        """Returns the manifest that was applied last; None if there is no service, or it was made otherwise."""
        found = self.describe() or {"metadata": {}}
        manifest = json.loads(found["metadata"].get("annotations", {}).get(_APPLIED, "null"))
        return None if manifest is None else dict(manifest)

    def delete(self) -> None:
        """Deletes the service with all that it created."""
        _kubectl("delete", "inferenceservice", self.name, "--ignore-not-found", "--wait")

    def _apply(self, manifest: Mapping[str, Any]) -> None:
        _kubectl("apply", "--filename", "-", stdin=json.dumps(manifest))

    def _becomes_ready(self, manifest: Mapping[str, Any]) -> bool:
        """Waits until the pods of a manifest serve.

        The condition Ready alone does not say so: it stays true while the pods before serve. Nor does `kubectl wait`
        know: KServe's observedGeneration is the generation of the Deployment, not of the InferenceService.
        """
        deadline = time.monotonic() + health.HEALTHY_SECONDS
        if not _poll(lambda: self._is_followed(manifest), deadline):
            return False
        seconds = max(1, round(deadline - time.monotonic()))
        try:
            _kubectl("rollout", "status", f"deployment/{self.name}-predictor", f"--timeout={seconds}s")
        except DeployError as error:
            if any(text in str(error) for text in _NOT_READY):
                return False
            raise
        return _poll(lambda: is_ready(self.describe() or {}), deadline)

    def _is_followed(self, manifest: Mapping[str, Any]) -> bool:
        """Returns whether KServe has brought a manifest to the Deployment."""
        name = f"{self.name}-predictor"
        text = _kubectl("get", "deployment", name, "--ignore-not-found", "--output", "json")
        return bool(text.strip()) and has_container(json.loads(text), manifest)


def has_container(deployment: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Returns whether a Deployment runs the image of a manifest, with its variables and resources."""
    (wanted,) = manifest["spec"]["predictor"]["containers"]
    containers = deployment["spec"]["template"]["spec"]["containers"]
    found = next((container for container in containers if container["name"] == wanted["name"]), None)
    if found is None or found["image"] != wanted["image"]:
        return False
    # KServe may add variables, but none of the server's.
    names = {variable["name"] for variable in wanted["env"]}
    variables = [
        variable
        for variable in found.get("env", ())
        if variable["name"] in names or variable["name"].startswith("JAXCNN_")
    ]
    return variables == wanted["env"] and _amounts(found) == _amounts(wanted)


def _amounts(container: Mapping[str, Any]) -> dict[tuple[str, str], Decimal]:
    """Returns the CPUs and the bytes of a container's requests and limits."""
    bounds = container["resources"]
    return {(bound, resource): _parse(bounds[bound][resource]) for bound in bounds for resource in ("cpu", "memory")}


def _parse(quantity: str) -> Decimal:
    number = quantity.rstrip("".join(_UNITS))
    return Decimal(number) * _UNITS[quantity.removeprefix(number)]


def _poll(is_over: Callable[[], bool], deadline: float) -> bool:
    """Asks again and again, and returns whether the answer was yes before a time of the monotonic clock."""
    while not is_over():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def is_ready(description: Mapping[str, Any]) -> bool:
    """Returns whether a service, as the cluster describes it, is ready."""
    conditions = description.get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _kubectl(*arguments: str, stdin: str = "") -> str:
    """Runs kubectl, and returns what it prints.

    Raises:
      DeployError: kubectl is not installed, or refuses.
    """
    try:
        done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise DeployError("kubectl is not installed: install it, and set it up for the cluster.") from None
    if done.returncode:
        # What comes before the last line are warnings and attempts.
        raise DeployError(f"kubectl refuses: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout
