"""Deploys the server to a cloud: `python -m server.deploy ecs --image REPOSITORY@sha256:DIGEST`."""

import argparse
import re
import sys
import time
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.deploy.errors import DeployError

if TYPE_CHECKING:
    from server.deploy.template import Template

_TARGETS = {
    "ecs": "ECS Fargate behind a load balancer",
    "express": "ECS Express Mode",
    "lambda": "Lambda, with the Lambda Web Adapter in the image",
    "sagemaker": "an endpoint of SageMaker, serverless or on an instance",
}

# For how long a new deployment may take to respond, and between two questions.
_HEALTHY_SECONDS = 300
_POLL_SECONDS = 5.0


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
    return 1


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser("python -m server.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for target, text in _TARGETS.items():
        command = commands.add_parser(target, help=text)
        command.add_argument("--image", required=True, help="image with its digest: REPOSITORY@sha256:DIGEST")
        command.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the template")
        command.add_argument("--dry-run", action="store_true", help="print what would be created, and what it costs")
    commands.add_parser("status", help="what is deployed, and whether it responds")
    commands.add_parser("destroy", help="delete everything that a deployment created")
    for command in commands.choices.values():
        command.add_argument("--name", default="jaxcnn", help="name of the stack (default: jaxcnn)")
        command.add_argument("--region", help="region of AWS, by default that of its configuration")
    return parser


def _deploy(options: argparse.Namespace) -> int:
    from server.deploy.stack import Stack, deploy_healthy
    from server.deploy.template import Template

    _check_name(options.name)
    values = {"Image": options.image}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise DeployError(f"--set {text!r} has no value: write NAME=VALUE.")
        values[name] = value
    template = Template.render(options.command, values)
    _print_plan(options.command, template)
    if options.dry_run:
        return 0
    # The load balancer needs a network; by default the account's own.
    if {"Vpc", "Subnets"} & set(template.missing()):
        template = Template.render(options.command, {**_default_network(_client(options, "ec2")), **values})
    stack = Stack(_client(options, "cloudformation"), options.name, _POLL_SECONDS)
    has_changed = deploy_healthy(stack, template, lambda: _is_healthy(options.command, stack.outputs().get("Url")))
    print("deployed" if has_changed else "already up to date")
    _print_outputs(stack.outputs())
    return 0


def _status(options: argparse.Namespace) -> int:
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
    is_ready = _responds(url)
    print("it is ready" if is_ready else "it does not respond")
    return 0 if is_ready else 1


def _destroy(options: argparse.Namespace) -> int:
    stack = _stack(options)
    if stack.describe() is None:
        print(f"There is no stack {options.name}.")
        return 0
    stack.delete()
    print("destroyed")
    return 0


def _stack(options: argparse.Namespace) -> Any:
    from server.deploy.stack import Stack

    _check_name(options.name)
    return Stack(_client(options, "cloudformation"), options.name, _POLL_SECONDS)


def _client(options: argparse.Namespace, service: str) -> Any:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return boto3.client(service, region_name=options.region)
    except BotoCoreError as error:
        raise DeployError(f"{error} Set --region, or AWS_REGION.") from None


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
    print(f"It costs about, by list prices of {prices.DATE} in us-east-1:")
    for load, per_second in prices.LOADS.items():
        cost = prices.monthly(target, template.parameters, per_second)
        if cost is None:
            print(f"  at {load}: the price of this instance is not known here")
            continue
        parts = ", ".join(f"{item} {dollars:.2f}" for item, dollars in cost.items.items())
        print(f"  at {load}: {cost.total:.2f} dollars a month ({parts})")


def _print_outputs(outputs: dict[str, str]) -> None:
    for name, value in outputs.items():
        print(f"  {name}: {value}")


def _default_network(ec2: Any) -> dict[str, str]:
    """Returns the parameters of the account's default network.

    Raises:
      DeployError: the account has none in this region, or AWS refuses.
    """
    from server.deploy.stack import refusals

    with refusals():
        networks = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not networks:
            raise DeployError("This region has no default VPC: name one with --set Vpc=ID Subnets=ID,ID.")
        vpc = networks[0]["VpcId"]
        subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    return {"Vpc": vpc, "Subnets": ",".join(subnet["SubnetId"] for subnet in subnets)}


def _is_healthy(target: str, url: str | None) -> bool:
    """Waits until the deployment responds. CloudFormation itself waits for an endpoint of SageMaker.

    A function of Lambda whose URL needs a signature responds 403 to everybody else, so it is not asked.
    """
    if url is None or target == "lambda":
        return True
    deadline = time.monotonic() + _HEALTHY_SECONDS
    while not _responds(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=10) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
