"""What an account of AWS has: clients of its services, and what templates need of it by default."""

from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

from server.deploy.errors import DeployError
from server.deploy.stack import refusals
from server.deploy.template import Template

# Parameters of the network, which AWS has a default for.
_NETWORK = ("Vpc", "Subnet", "Subnets")

# Where AWS keeps the image of the newest Ubuntu.
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


def client(service: str, region: str | None) -> Any:
    """Returns a client of a service.

    Args:
      service: its name in boto3.
      region: the region; None: that of the configuration.

    Raises:
      DeployError: there is no region, or the configuration is invalid.
    """
    try:
        return boto3.client(service, region_name=region)
    except BotoCoreError as error:
        raise DeployError(f"{error} Set --region, or AWS_DEFAULT_REGION.") from None


def defaults(template: Template, region: str | None) -> dict[str, str]:
    """Returns values of the parameters that need one: the account's own network, and the newest Ubuntu.

    Raises:
      DeployError: a part of the network is named but not all, the account has none, or AWS refuses.
    """
    missing = template.missing()
    found: dict[str, str] = {}
    if network := [name for name in missing if name in _NETWORK]:
        if set(_NETWORK) & set(template.parameters):
            raise DeployError(f"Vpc and its subnets go together: name {', '.join(network)} with --set, too.")
        found = _default_network(client("ec2", region))
    if "Ubuntu" in missing:
        with refusals():
            found["Ubuntu"] = client("ssm", region).get_parameter(Name=_UBUNTU)["Parameter"]["Value"]
    return {name: found[name] for name in missing if name in found}


def _default_network(ec2: Any) -> dict[str, str]:
    """Returns the parameters of the account's default network: two subnets, as each costs the load balancer an address.

    Raises:
      DeployError: the account has none in this region, or AWS refuses.
    """
    with refusals():
        networks = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not networks:
            raise DeployError("This region has no default VPC: name one with --set Vpc=ID Subnets=ID,ID.")
        vpc = networks[0]["VpcId"]
        filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "default-for-az", "Values": ["true"]}]
        found = ec2.describe_subnets(Filters=filters)["Subnets"]
    if not found:
        raise DeployError("The default VPC has no default subnets: name some with --set.")
    # There is one in each zone; always the same ones, or the next update would move the deployment.
    subnets = sorted(subnet["SubnetId"] for subnet in found)
    return {"Vpc": vpc, "Subnet": subnets[0], "Subnets": ",".join(subnets[:2])}
