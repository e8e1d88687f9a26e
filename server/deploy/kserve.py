"""The server as an InferenceService of KServe, in the cluster that kubectl is set up for."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.deploy.errors import DeployError
from server.deploy.template import check_image

_MANIFEST = Path(__file__).parent / "kubernetes" / "kserve" / "inferenceservice.yaml"

PARAMETERS = {
    "Image": ".*",
    "MinReplicas": "[0-9]{1,3}",
    "MaxReplicas": "[1-9][0-9]{0,2}",
    "Cpu": r"[0-9]+(\.[0-9]+|m)?",
    "Memory": "[0-9]+[MG]i",
    "Model": r"\S+",
}
"""The parameters, with a regular expression of their values. `Cpu` and `Memory` are quantities of Kubernetes."""

# Where kubectl keeps the manifest that was applied last.
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def render(name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Returns the manifest with a name and the values of parameters.

    Raises:
      DeployError: there is no such parameter, a value is not allowed, or the image has no digest.
    """
    for parameter, value in values.items():
        if parameter not in PARAMETERS:
            raise DeployError(f"kserve has no parameter {parameter}: use one of {', '.join(PARAMETERS)}.")
        if not re.fullmatch(PARAMETERS[parameter], value):
            raise DeployError(f"{parameter} is {value!r}: it must match {PARAMETERS[parameter]}.")
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
    if "Model" in values:
        container["env"].append({"name": "JAXCNN_MODEL", "value": values["Model"]})
    return manifest


@dataclass(frozen=True)
class InferenceService:
    """An InferenceService, which may not exist yet.

    Attributes:
      name: its name.
      seconds: for how long it may take to become ready.
    """

    name: str
    seconds: int = 300

    def deploy(self, manifest: Mapping[str, Any]) -> bool:
        """Creates or updates the service, and returns to the manifest before if it does not become ready.

        Returns:
          False if the service was up to date already.

        Raises:
          DeployError: kubectl refuses, or the service does not become ready.
        """
        found = self.describe()
        previous = json.loads(found["metadata"].get("annotations", {}).get(_APPLIED, "null")) if found else None
        has_changed = previous is None or previous["spec"] != manifest["spec"]
        if has_changed:
            self._apply(manifest)
        if self._becomes_ready():
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

    def delete(self) -> None:
        """Deletes the service with all that it created."""
        _kubectl("delete", "inferenceservice", self.name, "--ignore-not-found", "--wait")

    def _apply(self, manifest: Mapping[str, Any]) -> None:
        _kubectl("apply", "--filename", "-", stdin=json.dumps(manifest))

    def _becomes_ready(self) -> bool:
        try:
            _kubectl("wait", f"inferenceservice/{self.name}", "--for=condition=Ready", f"--timeout={self.seconds}s")
        except DeployError as error:
            if "timed out" in str(error):
                return False
            raise
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
