"""Whether a deployment responds, and how long it may take to."""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

# For how long a new deployment may take to respond, and between two questions. Startup probes allow ten minutes for a
# large model; images are fetched before.
HEALTHY_SECONDS = 900
POLL_SECONDS = 5.0

# The addresses of all clients.
_EVERYBODY = "0.0.0.0/0"


def is_healthy(target: str, url: str | None, parameters: Mapping[str, str]) -> bool:
    """Waits until the deployment responds. CloudFormation itself waits for an endpoint of SageMaker.

    A function of Lambda whose URL needs a signature responds 403 to everybody else, so it is not asked. Nor is a
    machine, whose installation has waited for the server: its domain may not lead to its address yet. Nor is what
    this machine may not reach, of which the load balancer has said that it is ready.
    """
    if url is None or target in ("lambda", "ec2") or parameters.get("Clients", _EVERYBODY) != _EVERYBODY:
        return True
    deadline = time.monotonic() + HEALTHY_SECONDS
    while ask(url) != 200:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def ask(url: str) -> int | None:
    """Returns the status of /readyz; None without a response."""
    # A load balancer has a certificate for another name, which leads to it.
    context = ssl.create_default_context()
    context.check_hostname = False
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=10, context=context) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
