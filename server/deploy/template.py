"""The CloudFormation templates: what each creates, and which parameters it takes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.deploy.errors import DeployError
from server.source import hide_secrets

_FOLDER = Path(__file__).parent / "cloudformation"


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]
    """Reads CloudFormation's short forms, such as `!Ref NAME`, as their argument."""


def _construct(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    return loader.construct_mapping(node, deep=True)


_Loader.add_multi_constructor("!", _construct)


@dataclass(frozen=True)
class Template:
    """A template with the values of its parameters."""

    text: str
    description: str
    resources: Mapping[str, str]
    """The type of each resource, by its name in the template."""
    parameters: Mapping[str, str]

    @classmethod
    def render(cls, target: str, values: Mapping[str, str]) -> "Template":
        """Reads the template of a target, and checks the values of its parameters.

        Raises:
          DeployError: there is no such parameter, a value is not allowed, or the image has no digest.
        """
        text = (_FOLDER / f"{target}.yaml").read_text()
        content = yaml.load(text, _Loader)  # noqa: S506
        declared = content["Parameters"]
        for name, value in values.items():
            if name not in declared:
                raise DeployError(f"{target} has no parameter {hide_secrets(name)}: use one of {', '.join(declared)}.")
            _check_value(name, value, declared[name])
        if "Image" in declared:
            check_image(values.get("Image", ""))
        defaults = {name: str(entry["Default"]) for name, entry in declared.items() if "Default" in entry}
        resources = {name: entry["Type"] for name, entry in content["Resources"].items()}
        parameters = {**defaults, **values}
        if "MinTasks" in parameters and int(parameters["MinTasks"]) > int(parameters["MaxTasks"]):
            raise DeployError(f"MinTasks is above MaxTasks, which is {parameters['MaxTasks']}: lower it.")
        return cls(text, content["Description"], resources, parameters)

    def missing(self) -> list[str]:
        """Returns the parameters that still need a value."""
        declared = yaml.load(self.text, _Loader)["Parameters"]  # noqa: S506
        return [name for name in declared if name not in self.parameters]

    def to_arguments(self) -> dict[str, Any]:
        """Returns the template and its parameters as arguments of CloudFormation's API."""
        listed = [{"ParameterKey": name, "ParameterValue": value} for name, value in sorted(self.parameters.items())]
        return {"TemplateBody": self.text, "Parameters": listed, "Capabilities": ["CAPABILITY_IAM"]}


def _check_value(name: str, value: str, declared: Mapping[str, Any]) -> None:
    allowed = [str(item) for item in declared.get("AllowedValues", ())]
    if allowed and value not in allowed:
        raise DeployError(f"{name} is {value!r}: set it to one of {', '.join(allowed)}.")
    pattern = declared.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, value):
        raise DeployError(f"{name} is {json.dumps(hide_secrets(value))}: it must match {pattern}.")
    if declared["Type"] != "Number":
        return
    low, high = declared.get("MinValue", 0), declared.get("MaxValue", 10**9)
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        raise DeployError(f"{name} is {json.dumps(value)}: set it to an integer from {low} to {high}.")


def check_image(image: str) -> None:
    """Raises a `DeployError` unless an image is named by its digest."""
    _, separator, digest = image.partition("@sha256:")
    if not separator or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise DeployError(
            "--image needs the image's digest, as REPOSITORY@sha256:DIGEST (`docker push` prints it): a tag may change"
            " its meaning between two starts."
        )
