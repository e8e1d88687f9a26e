"""The installer on a fresh Debian: it passes, its service predicts, and it upgrades.

systemd does not run there, so the test enables the units, and starts the server as the unit says.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.server.wire import COLOURS, encode, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]
TOOLS = ("mmdebstrap", "unshare", "setpriv")

# Runs a command in the root; the network and the clock are the host's.
ENTER = """
cd "$1"; shift
mount -t proc proc proc && mount --rbind /dev dev && mount --bind /etc/resolv.conf etc/resolv.conf
exec chroot . "$@"
"""


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """A fresh Debian with systemd, and the source tree in /source."""
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"it needs root, and {', '.join(TOOLS)}")
    root = tmp_path_factory.mktemp("debian") / "root"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd", "trixie", root]
    subprocess.run(command, check=True)
    (root / "etc" / "resolv.conf").touch()
    # Who stands between this machine and the package index is known to the host only.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "host.crt")
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and name.startswith(("server/", "requirements.lock", "pyproject.toml")):
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / "source" / name)
    yield root
    shutil.rmtree(root)


def inside(root, *command, **options):
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CERT": "/host.crt", "SSL_CERT_FILE": "/host.crt"}
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", ENTER, "sh", root, *command]
    return subprocess.Popen(line, env=environment | options.pop("env", {}), text=True, **options)


def install(root, *arguments):
    process = inside(root, "sh", "/source/server/deploy/systemd/install.sh", *arguments, stdout=-1, stderr=-1)
    printed, error = process.communicate()
    return process.returncode, printed, error


def releases(root):
    return {path.name for path in (root / "opt" / "jaxcnn").iterdir() if path.is_dir() and not path.is_symlink()}


def test_a_fresh_debian_serves_and_upgrades(debian):
    status, printed, error = install(debian, "--caddy", ":80")
    assert status == 0, error
    (first,) = releases(debian)
    assert printed.endswith(f"installed /opt/jaxcnn/{first}\n")
    # The units are there and enabled, and the settings are for root alone.
    units = debian / "etc" / "systemd" / "system"
    assert (units / "sockets.target.wants" / "jaxcnn.socket").is_symlink()
    assert (units / "multi-user.target.wants" / "jaxcnn.service").is_symlink()
    assert (debian / "etc" / "jaxcnn.env").stat().st_mode & 0o777 == 0o600
    assert "JAXCNN_SITE=:80" in (units / "caddy.service.d" / "jaxcnn.conf").read_text()
    check_that_it_predicts(debian, (units / "jaxcnn.service").read_text())
    # The same again changes nothing; a new version keeps the one before it, and no other.
    assert install(debian)[0] == 0
    assert releases(debian) == {first}
    versions = [first]
    for number in range(2):
        (debian / "source" / "server" / "version_of_test.py").write_text(f"NUMBER = {number}\n")
        assert install(debian)[0] == 0
        (new,) = releases(debian) - set(versions)
        assert releases(debian) == {new, versions[-1]}
        assert (debian / "opt" / "jaxcnn" / "current").readlink().name == new
        versions.append(new)


def check_that_it_predicts(debian, unit):
    """Starts the server with the command and the environment of the unit, on a socket, as a user without rights."""
    variables = dict(
        pair.split("=", 1) for line in re.findall("^Environment=(.*)$", unit, re.M) for pair in line.split()
    )
    command = re.search("^ExecStart=(.*)$", unit, re.M)[1]
    script = f"exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec {command}"
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = inside(debian, *become, "/bin/sh", "-c", script, stdin=listener, env=variables)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            assert client.get("/readyz").status_code == 200
            assert post(client, encode(COLOURS["red"], "JPEG")).json()["top_predictions"]
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert process.wait(timeout=30) == 0
