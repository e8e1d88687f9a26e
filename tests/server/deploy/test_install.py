"""The installer on a fresh Debian: first in its files, as for the image of a machine, then with systemd running.

systemd boots in namespaces of this machine, and shares its network. JAXCNN_TEST_DEBIAN may name the archive of the
Debian, made earlier with `mmdebstrap --variant=minbase --include=systemd trixie debian.tar`.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.server.deploy.clients import asking
from tests.server.wire import COLOURS, encode, post

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]
TOOLS = ("mmdebstrap", "unshare", "setpriv", "nsenter")
DEBIAN = os.environ.get("JAXCNN_TEST_DEBIAN")

# Runs a command in the files of the Debian; the network and the clock are the host's.
ENTER = """
cd "$1"; shift
mount -t proc proc proc && mount --rbind /dev dev && mount --bind /etc/resolv.conf etc/resolv.conf
exec chroot . "$@"
"""

# Joins a control group, which becomes the root of those that systemd sees, then boots.
JOIN = """
echo $$ > "$2/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --cgroup --ipc --uts /bin/sh -euc "$3" sh "$1"
"""
BOOT = """
mount --bind "$1" "$1" && cd "$1"
mount -t proc proc proc && mount --bind proc/sys proc/sys && mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys && mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 none run && mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom tty; do : > dev/$name && mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=666 none dev/pts
ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd
mount --bind /etc/resolv.conf etc/resolv.conf
hostname jaxcnn-test
pivot_root . . && umount -l .
exec setpriv --bounding-set=-sys_time,-sys_module,-sys_rawio,-sys_boot,-syslog \
    env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"""


class Machine:
    """A Debian in a folder, with the source tree in /source."""

    def __init__(self, root, group):
        self.root, self._group = root, group
        self._process = None

    def boot(self):
        """Starts systemd, and waits until it has started all units."""
        self._group.mkdir()
        line = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", JOIN, "sh"]
        self._process = subprocess.Popen([*line, self.root, self._group, BOOT])
        deadline = time.monotonic() + 60
        while self.run("systemctl", "is-system-running", "--wait").stdout.strip() != "running":
            assert self._process.poll() is None, "systemd did not start"
            assert time.monotonic() < deadline, self.run("systemctl", "list-units", "--failed").stdout
            time.sleep(0.2)

    def turn_off(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            # The kernel ends what has run in the machine.
            while "populated 1" in (self._group / "cgroup.events").read_text():
                time.sleep(0.05)
            for folder in sorted(self._group.rglob("*/"), reverse=True):
                folder.rmdir()
            self._group.rmdir()

    def run(self, *command):
        """Runs a command as root, in the files or, once it has booted, in the machine."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CERT": "/host.crt", "SSL_CERT_FILE": "/host.crt"}
        line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", ENTER, "sh", self.root]
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            line = ["nsenter", f"--target={children[0] if children else self._process.pid}"]
            line += ["--mount", "--pid", "--cgroup", "--ipc", "--uts", "--root", "--wd"]
        return subprocess.run([*line, *command], env=environment, capture_output=True, text=True, check=False)

    def install(self, *arguments):
        return self.run("sh", "/source/server/deploy/systemd/install.sh", *arguments)

    def releases(self):
        folder = self.root / "opt" / "jaxcnn"
        return {path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()}

    def current(self):
        return (self.root / "opt" / "jaxcnn" / "current").readlink().name

    def show(self, name):
        """Returns a property of the service."""
        return self.run("systemctl", "show", "--value", "--property", name, "jaxcnn.service").stdout.strip()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"it needs root, and {', '.join(TOOLS)}")
    mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    groups = [Path(place) for _, place, kind, *_ in mounted if kind == "cgroup2"]
    if not groups:
        pytest.skip("it needs version 2 of the control groups")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8080)) == 0:
            pytest.skip("port 8080, on which the service listens, is in use")
    root = tmp_path_factory.mktemp("debian") / "root"
    make_debian(root)
    machine = Machine(root, groups[0] / f"jaxcnn-test-{os.getpid()}")
    yield machine
    machine.turn_off()
    shutil.rmtree(root)


def make_debian(root):
    """Makes the files of a fresh Debian with systemd, and copies the source tree to /source."""
    if DEBIAN:
        root.mkdir()
        subprocess.run(["tar", "--extract", "--file", DEBIAN, "--directory", root], check=True)
    else:
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


def predict(port):
    """Asks for a prediction, and returns the class."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        return post(client, encode(COLOURS["red"])).json()["predicted_class"]


def test_a_fresh_debian_serves_restarts_and_upgrades(machine, free_port):
    # Without a running systemd the installer starts nothing, but enables the units.
    done = machine.install("--caddy", f":{free_port}")
    assert done.returncode == 0, done.stderr
    (first,) = machine.releases()
    assert done.stdout.endswith(f"installed /opt/jaxcnn/{first}\n")
    assert (machine.root / "etc" / "jaxcnn.env").stat().st_mode & 0o777 == 0o600
    # The machine boots, and serves.
    machine.boot()
    names = ["jaxcnn.socket", "jaxcnn.service", "caddy.service"]
    assert machine.run("systemctl", "is-enabled", *names).stdout.split() == ["enabled"] * 3
    assert machine.run("systemctl", "is-active", *names).stdout.split() == ["active"] * 3
    predicted = predict(8080)
    assert predict(free_port) == predicted
    check_that_it_is_confined(machine)
    # A restart loses no request, and a server that is killed is started again.
    with asking(free_port, predicted) as answered:
        time.sleep(0.5)
        assert machine.run("systemctl", "restart", "jaxcnn.service").returncode == 0
        restarted = time.monotonic()
        time.sleep(2)
    assert answered[0] < restarted < answered[-1]
    machine.run("systemctl", "kill", "--signal=KILL", "jaxcnn.service")
    assert predict(8080) == predicted
    assert machine.show("NRestarts") == "1"
    # The same version again changes nothing.
    assert machine.install().returncode == 0
    assert machine.releases() == {first}
    # A new version runs, and the one before it stays.
    write_version(machine, "SECOND = True\n")
    assert machine.install().returncode == 0
    (second,) = machine.releases() - {first}
    assert machine.current() == second
    assert predict(8080) == predicted
    # A version that cannot start is replaced by the one before it.
    write_version(machine, "THIRD = True\n")
    program = machine.root / "source" / "server" / "app.py"
    working = program.read_text()
    program.write_text(working + "raise RuntimeError('this version is broken')\n")
    done = machine.install()
    assert done.returncode == 1
    assert "this version is broken" in done.stderr
    assert done.stderr.endswith(
        "install.sh: the new version did not become healthy, and the one before it runs again: its log is above.\n"
    )
    assert machine.current() == second
    assert predict(8080) == predicted
    # Once it is mended, it runs, and what is older than the version before it is removed.
    program.write_text(working)
    assert machine.install().returncode == 0
    assert machine.releases() == {machine.current(), second}
    assert machine.current() not in (first, second)
    assert predict(8080) == predicted
    # Nothing is left of it after the commands of the README.
    readme = (ROOT / "server" / "deploy" / "README.md").read_text()
    done = machine.run(
        "sh", "-euc", re.search(r"^```\n(systemctl disable .*?)^```", readme, re.DOTALL | re.MULTILINE)[1]
    )
    assert done.returncode == 0, done.stderr
    assert [path for name in ("etc", "opt", "var") for path in (machine.root / name).rglob("*jaxcnn*")] == []
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "jaxcnn*", "caddy*").stdout == ""


def write_version(machine, text):
    (machine.root / "source" / "server" / "version_of_test.py").write_text(text)


def check_that_it_is_confined(machine):
    """The running process has no rights, as the unit asks for."""
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status").stdout
    fields = dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE))
    assert "0" not in fields["Uid"].split()
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
