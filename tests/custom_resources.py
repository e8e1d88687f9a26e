"""Validates custom resources of Kubernetes against their definitions, as the API server does.

`JAXCNN_TEST_CRDS` names a folder with definitions in files such as `jobsets.yaml`; without it, such tests are skipped.
"""

import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = os.environ.get("JAXCNN_TEST_CRDS")
needs_definitions = pytest.mark.skipif(
    FOLDER is None, reason="JAXCNN_TEST_CRDS does not name a folder with definitions of custom resources"
)


def find_errors(manifest: dict[str, Any]) -> list[str]:
    """Returns what is wrong with a manifest, whose metadata are not looked at."""
    jsonschema, yaml = pytest.importorskip("jsonschema"), pytest.importorskip("yaml")
    text = (Path(FOLDER or "") / f"{manifest['kind'].lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    name = manifest["apiVersion"].partition("/")[2]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == name)
    schema["properties"]["metadata"] = {"type": "object"}
    return [error.message for error in jsonschema.Draft202012Validator(_close(schema)).iter_errors(manifest)]


def _close(schema: Any) -> Any:
    """Returns a schema that allows no fields but its own, and numbers and text where Kubernetes takes either."""
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _close(value) for key, value in schema.items()}
    if result.pop("x-kubernetes-int-or-string", False) is True:
        result = {"type": ["integer", "string"]}
    if "properties" in result and "x-kubernetes-preserve-unknown-fields" not in result:
        result.setdefault("additionalProperties", False)
    return result
