"""Processes with addresses of their own, as on several machines: each in its network namespace."""

import os
import shutil
import subprocess
from contextlib import ExitStack

import pytest
from launch import SMALL, check_same_run, records, train

pytestmark = pytest.mark.slow


def ip(command):
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def namespaces(tmp_path):
    """Four network namespaces that are joined by a bridge; the process in each finds its name in its own hosts file."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs ip and root")
    tag = f"jx{os.getpid() % 10000}"
    names = [f"{tag}n{i}" for i in range(4)]
    with ExitStack() as stack:
        try:
            ip(f"link add {tag} type bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridge: {error.stderr}")
        stack.callback(ip, f"link del {tag}")
        ip(f"link set {tag} up")
        host = os.uname().nodename
        for i, name in enumerate(names):
            ip(f"netns add {name}")
            stack.callback(ip, f"netns del {name}")
            ip(f"link add {tag}v{i} type veth peer name eth0 netns {name}")
            # Before the namespace, which the system removes later, and the link with it.
            stack.callback(ip, f"link del {tag}v{i}")
            ip(f"link set {tag}v{i} master {tag} up")
            ip(f"-n {name} addr add 10.77.0.{i + 1}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
            folder = f"/etc/netns/{name}"
            os.makedirs(folder)
            stack.callback(shutil.rmtree, folder)
            with open(f"{folder}/hosts", "w") as hosts:
                hosts.write(f"127.0.0.1 localhost\n10.77.0.{i + 1} {host}\n")
        yield names


@pytest.mark.parametrize("count", [2, 4])
def test_processes_with_their_own_addresses_learn_what_one_learns(namespaces, tmp_path, count):
    train(1, tmp_path / "one", *SMALL, "--epochs", "10")
    prefixes = [["ip", "netns", "exec", name] for name in namespaces[:count]]
    train(count, tmp_path / "several", *SMALL, "--epochs", "10", host="10.77.0.1", prefixes=prefixes)
    check_same_run(tmp_path / "several", tmp_path / "one")
    assert len(records(tmp_path / "several", "start")) == 1
