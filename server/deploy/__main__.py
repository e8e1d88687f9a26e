"""Deploys the server to AWS or KServe: `python -m server.deploy ecs --image REPOSITORY@sha256:DIGEST`."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.deploy import health
from server.deploy.errors import DeployError
from server.source import hide_secrets

if TYPE_CHECKING:
    from server.deploy.template import Template

_TARGETS = {
    "ecs": "ECS Fargate behind a load balancer",
    "express": "ECS Express Mode",
    "ec2": "one machine on EC2, with systemd and Caddy",
    "lambda": "Lambda, with the Lambda Web Adapter in the image",
    "sagemaker": "an endpoint of SageMaker, serverless or on an instance",
    "kserve": "an InferenceService of KServe, in the cluster of kubectl",
}


def main(arguments: Sequence[str]) -> int:
    """Runs one command, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        if options.command == "status":
            return _status(options)
        if options.command == "destroy":
            return _destroy(options)
        return _deploy(options)
    except DeployError as error:
        print(f"server.deploy: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"server.deploy: the package {error.name} is missing: pip install 'jaxcnn[deploy]'.", file=sys.stderr)
    except KeyboardInterrupt:
        print("server.deploy: interrupted; what has begun goes on, see the command status.", file=sys.stderr)
        return 130
    return 1


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser("python -m server.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for target, text in _TARGETS.items():
        command = commands.add_parser(target, help=text)
        if target == "ec2":
            command.add_argument("--source", required=True, help="source archive: https://HOST/PATH#sha256=CHECKSUM")
        else:
            command.add_argument("--image", required=True, help="image with its digest: REPOSITORY@sha256:DIGEST")
        command.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="parameters of the template"
        )
        command.add_argument("--dry-run", action="store_true", help="print what would be created, and what it costs")
    status = commands.add_parser("status", help="what is deployed, and whether it responds")
    destroy = commands.add_parser("destroy", help="delete everything that a deployment created")
    for command in (status, destroy):
        command.add_argument("--kserve", action="store_true", help="the InferenceService rather than the stack")
    for name, command in commands.choices.items():
        command.add_argument("--name", default="jaxcnn", help="name of the deployment (default: jaxcnn)")
        if name != "kserve":
            command.add_argument("--region", help="region of AWS, by default that of its configuration")
    return parser


def _deploy(options: argparse.Namespace) -> int:
    _check_name(options.name)
    values: dict[str, str] = {}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise DeployError(f"--set {hide_secrets(text)!r} has no value: write NAME=VALUE.")
        values[name] = value
    if options.command == "ec2":
        values |= _parse_source(options.source)
        return _deploy_stack(options, values)
    values["Image"] = options.image
    return _deploy_kserve(options, values) if options.command == "kserve" else _deploy_stack(options, values)


def _deploy_stack(options: argparse.Namespace, values: dict[str, str]) -> int:
    from server.deploy import account
    from server.deploy.stack import deploy_healthy
    from server.deploy.template import Template

    template = Template.render(options.command, values)
    if options.dry_run:
        _print_plan(options.command, template)
        return 0
    stack = _stack(options)
    # What was set before stays, such as a certificate or the network.
    before = stack.parameters(template)
    template = Template.render(options.command, before | values)
    template = Template.render(options.command, {**account.defaults(template, options.region), **template.parameters})
    _print_plan(options.command, template)
    _print_kept(before, values)
    has_changed = deploy_healthy(
        stack, template, lambda: health.is_healthy(options.command, stack.outputs().get("Url"), template.parameters)
    )
    print("deployed" if has_changed else "already up to date")
    _print_outputs(stack.outputs())
    return 0


def _deploy_kserve(options: argparse.Namespace, values: dict[str, str]) -> int:
    from server.deploy import kserve

    manifest, before = kserve.render(options.name, values), dict[str, str]()
    service = kserve.InferenceService(options.name)
    if not options.dry_run:
        before = kserve.parameters(service.applied() or {})
        manifest = kserve.render(options.name, before | values)
    print(f"An InferenceService of KServe, {options.name}, which makes pods, their scaling and a URL:")
    shown = {name: hide_secrets(value) for name, value in (before | values).items()}
    print(json.dumps(kserve.render(options.name, shown)["spec"], indent=2))
    print("Its price is that of the cluster's nodes.")
    if options.dry_run:
        return 0
    _print_kept(before, values)
    print("deployed" if service.deploy(manifest) else "already up to date")
    return _status_of_kserve(options)


def _status(options: argparse.Namespace) -> int:
    if options.kserve:
        return _status_of_kserve(options)
    stack = _stack(options)
    description = stack.describe()
    if description is None:
        print(f"There is no stack {options.name}.")
        return 1
    print(f"{options.name}: {description['StackStatus']}")
    _print_outputs(stack.outputs())
    url = stack.outputs().get("Url")
    if url is None:
        return 0
    status = health.ask(url)
    # A function of Lambda refuses whoever has not signed the request, unless it is for everybody.
    parameters = {item["ParameterKey"]: item["ParameterValue"] for item in description.get("Parameters", ())}
    if status == 403 and parameters.get("Access") == "AWS_IAM":
        print("it responds to signed requests alone")
        return 0
    if status == 200:
        print("it is ready")
        return 0
    print("it does not respond" if status is None else f"it is not ready: it responds with status {status}")
    return 1


def _status_of_kserve(options: argparse.Namespace) -> int:
    from server.deploy import kserve

    _check_name(options.name)
    description = kserve.InferenceService(options.name).describe()
    if description is None:
        print(f"There is no InferenceService {options.name}.")
        return 1
    _print_outputs({"Url": description.get("status", {}).get("url", "none yet")})
    is_ready = kserve.is_ready(description)
    print("it is ready" if is_ready else "it is not ready")
    return 0 if is_ready else 1


def _destroy(options: argparse.Namespace) -> int:
    if options.kserve:
        from server.deploy.kserve import InferenceService

        _check_name(options.name)
        InferenceService(options.name).delete()
        print("destroyed")
        return 0
    stack = _stack(options)
    if stack.describe() is None:
        print(f"There is no stack {options.name}.")
        return 0
    stack.delete()
    print("destroyed")
    return 0


def _parse_source(text: str) -> dict[str, str]:
    """Returns the parameters that name a source archive."""
    url, _, digest = text.partition("#sha256=")
    if not url.startswith("https://") or not re.fullmatch("[0-9a-f]{64}", digest):
        raise DeployError(
            f"--source is {hide_secrets(text)!r}: write https://HOST/PATH#sha256=CHECKSUM, the source archive of a"
            " release, whose checksum `sha256sum` prints."
        )
    return {"Source": url, "SourceSha256": digest}


def _stack(options: argparse.Namespace) -> Any:
    from server.deploy import account
    from server.deploy.stack import Stack

    _check_name(options.name)
    return Stack(account.client("cloudformation", options.region), options.name, health.POLL_SECONDS)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise DeployError(
            f"--name is {name!r}: use up to 32 lowercase letters, digits and hyphens, beginning with a letter."
        )


def _print_plan(target: str, template: "Template") -> None:
    from server.deploy import prices

    print(f"{template.description}:")
    for name, kind in template.resources.items():
        print(f"  {name:<20} {kind}")
    print(f"It costs about, by list prices of {prices.DATE} in us-east-1 (check them: {prices.CALCULATOR}):")
    for load, per_second in prices.LOADS.items():
        cost = prices.monthly(target, template.parameters, per_second)
        if cost is None:
            print(f"  at {load}: the price of this instance is not known here")
            continue
        parts = ", ".join(f"{item} {dollars:.2f}" for item, dollars in cost.items.items())
        print(f"  at {load}: {cost.total:.2f} dollars a month ({parts})")


def _print_kept(before: Mapping[str, str], values: Mapping[str, str]) -> None:
    if kept := [f"{name}={hide_secrets(value)}" for name, value in before.items() if name not in values and value]:
        print(f"Parameters stay as they are, unless --set says otherwise: {', '.join(kept)}")


def _print_outputs(outputs: dict[str, str]) -> None:
    for name, value in outputs.items():
        print(f"  {name}: {value}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
