"""What a deployment costs a month, at two loads."""

from collections.abc import Mapping
from dataclasses import dataclass

DATE = "June 2025"
"""When these list prices of AWS in us-east-1 were taken down, in US dollars and without taxes.

Later lists of others have the same prices: Fargate in March 2026, machines in March, April and October 2026, requests
of Lambda in September 2026, load balancers and logs in 2026; addresses in 2024. SageMaker's prices, disks and the
seconds of Lambda are in lists without a date. AWS itself was not asked."""

CALCULATOR = "https://calculator.aws"
"""Where AWS states its prices of today."""

_HOURS = 730
_SECONDS = _HOURS * 3600

_FARGATE_CPU_HOUR, _FARGATE_GB_HOUR = 0.04048, 0.004445
_BALANCER_HOUR, _BALANCER_UNIT_HOUR = 0.0225, 0.008
_LAMBDA_REQUEST, _LAMBDA_GB_SECOND = 0.20e-6, 16.6667e-6
_SERVERLESS_GB_SECOND = 20.0e-6
_ADDRESS_HOUR, _DISK_GB = 0.005, 0.08
_MACHINE_HOUR = {
    "t3.micro": 0.0104,
    "t3.small": 0.0208,
    "t3.medium": 0.0416,
    "t3.large": 0.0832,
    "c7i.large": 0.08925,
    "c7i.xlarge": 0.1785,
}
_MACHINE_DISK_GB = 12
_INSTANCE_HOUR = {"ml.t2.medium": 0.056, "ml.m5.large": 0.115, "ml.m5.xlarge": 0.23, "ml.c5.large": 0.102}
_INFERENCE_DATA_GB = 0.016
_LOG_GB = 0.50
_METRIC, _ALARM = 0.30, 0.10

# Container Insights has about so many metrics of one cluster, one task definition and one service.
_METRICS = 25

_LOG_BYTES = 250
"""Size of the log line of a request."""

_PICTURE_BYTES = 100_000
"""Size of a picture file of a million pixels or less."""

_REQUEST_SECONDS = 0.05
"""Time of a prediction on one virtual CPU, with a margin: the shipped model takes 17 to 24 ms."""

LOADS = {"1,000 predictions a day": 1000 / 86_400, "5 predictions a second": 5.0}
"""The loads, in predictions per second."""


@dataclass(frozen=True)
class Cost:
    """Dollars a month, by what they are paid for."""

    items: Mapping[str, float]

    @property
    def total(self) -> float:
        """Dollars a month."""
        return sum(self.items.values())


def monthly(target: str, parameters: Mapping[str, str], per_second: float) -> Cost | None:
    """Estimates what a target costs at a constant load.

    Args:
      target: name of the target.
      parameters: the values of the template's parameters.
      per_second: predictions per second.

    Returns:
      The cost; None if the price of the target or its instance is not known here.
    """
    log = {"log": per_second * _SECONDS * _LOG_BYTES / 1e9 * _LOG_GB}
    if target == "ec2":
        machine = _MACHINE_HOUR[parameters["Instance"]] * _HOURS
        # The log stays on the machine.
        return Cost({"machine": machine, "disk": _MACHINE_DISK_GB * _DISK_GB, "address": _ADDRESS_HOUR * _HOURS})
    busy_seconds = per_second * _SECONDS * _REQUEST_SECONDS
    if target in ("ecs", "express"):
        # Each task keeps 60 % of its CPUs busy, as the scaling policy wants it.
        cpus = int(parameters["Cpu"]) / 1024
        needed = -(-per_second * _REQUEST_SECONDS // (cpus * 0.6))
        tasks = min(max(int(parameters["MinTasks"]), needed), int(parameters["MaxTasks"]))
        hour = cpus * _FARGATE_CPU_HOUR + int(parameters["Memory"]) / 1024 * _FARGATE_GB_HOUR
        # One unit of the load balancer is a gigabyte an hour.
        units = max(1.0, per_second * 3600 * _PICTURE_BYTES / 1e9)
        balancer = (_BALANCER_HOUR + units * _BALANCER_UNIT_HOUR) * _HOURS
        # Each task has a public address, and the load balancer one in each of two zones.
        addresses = (tasks + 2) * _ADDRESS_HOUR * _HOURS
        items = {"tasks": tasks * hour * _HOURS, "load balancer": balancer, "addresses": addresses, **log}
        return Cost(items if target == "express" else {**items, "metrics": _METRICS * _METRIC + _ALARM})
    if target == "lambda":
        gigabyte_seconds = busy_seconds * int(parameters["Memory"]) / 1024
        requests = per_second * _SECONDS * _LAMBDA_REQUEST
        return Cost({"compute": gigabyte_seconds * _LAMBDA_GB_SECOND, "requests": requests, **log})
    # SageMaker also charges for the bytes that it passes on.
    data = {"data": per_second * _SECONDS * _PICTURE_BYTES / 1e9 * _INFERENCE_DATA_GB}
    if instance := parameters["Instance"]:
        if instance not in _INSTANCE_HOUR:
            return None
        return Cost({"instance": _INSTANCE_HOUR[instance] * _HOURS, **data, **log})
    gigabyte_seconds = busy_seconds * int(parameters["ServerlessMemory"]) / 1024
    return Cost({"compute": gigabyte_seconds * _SERVERLESS_GB_SECOND, **data, **log})
