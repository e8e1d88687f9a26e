"""The steps of the installer in a folder, with imitations of Python, systemd and apt. test_install.py has real ones."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

INSTALLER = Path(__file__).parents[3] / "server" / "deploy" / "systemd" / "install.sh"

NOTHING = "#!/bin/sh\n"
# Says what the service would start with: a version is broken if its unit or its code says so.
PYTHON = """#!/bin/sh
case "$*" in
    -VV) cat "{folder}/python-version" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "{folder}/bin/pip" "$3/bin/pip" ;;
    *"container health")
        ! grep -q broken "{folder}/machine/etc/systemd/system/jaxcnn.service" \\
            "{folder}/machine/opt/jaxcnn/current/server/code" ;;
esac
"""
SYSTEMD = """#!/bin/sh
echo "$*" >> "{folder}/systemd"
"""
# Another process holds its locks, or something else is wrong, as often as there are lines.
APT = """#!/bin/sh
[ -s "{folder}/apt" ] || exit 0
head -n 1 "{folder}/apt" >&2
sed -i 1d "{folder}/apt"
exit 100
"""
PIP = """#!/bin/sh
while [ "$1" != --target ]; do shift; done
mkdir -p "$2"
"""


class Machine:
    """A root folder, and a source tree, whose installer changes that folder only."""

    def __init__(self, folder):
        self.root, self._folder, self.source = folder / "machine", folder, folder / "source"
        for name in ("etc/systemd/system", "etc/caddy", "opt", "run/systemd/system"):
            (self.root / name).mkdir(parents=True)
        self.units = self.source / "server" / "deploy" / "systemd"
        shutil.copytree(INSTALLER.parent, self.units)
        text = INSTALLER.read_text()
        for name in ("/opt/jaxcnn", "/etc/", "/run/systemd"):
            text = text.replace(name, f"{self.root}{name}")
        (self.units / "install.sh").write_text(text)
        for name in ("server/code", "pyproject.toml", "requirements.lock"):
            (self.source / name).write_text("first\n")
        self.write_python("Python 3.13.5")
        programs = {"python3": PYTHON, "pip": PIP, "id": "#!/bin/sh\necho 0\n", "journalctl": "#!/bin/sh\nexit 1\n"}
        programs |= {"apt-get": APT, "systemctl": SYSTEMD, "sleep": NOTHING}
        (folder / "bin").mkdir()
        for name, program in programs.items():
            path = folder / "bin" / name
            path.write_text(program.format(folder=folder))
            path.chmod(0o755)

    def write_python(self, version):
        (self._folder / "python-version").write_text(version)

    def write_faults_of_apt(self, *lines):
        (self._folder / "apt").write_text("".join(f"{line}\n" for line in lines))

    def changes_of_units(self):
        """What systemd was asked to start and stop since the last call."""
        path = self._folder / "systemd"
        commands = path.read_text().splitlines()
        path.unlink()
        return [command for command in commands if re.match("(re)?start|stop", command)]

    def install(self, *arguments, umask=0o022):
        environment = os.environ | {"PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}"}
        command = ["sh", self.units / "install.sh", *arguments]
        return subprocess.run(command, env=environment, umask=umask, capture_output=True, text=True, check=False)

    def read(self, name):
        return (self.root / name).read_text()

    def current(self):
        return (self.root / "opt" / "jaxcnn" / "current").resolve()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("broken", ["server/deploy/systemd/jaxcnn.service", "server/code"])
def test_a_broken_version_takes_nothing_with_it(machine, broken):
    assert machine.install("--caddy", ":80").returncode == 0
    first, unit, proxy = machine.current(), machine.read("etc/systemd/system/jaxcnn.service"), "etc/caddy/Caddyfile"
    limits = machine.read(proxy)
    for name in (broken, "server/deploy/systemd/jaxcnn.socket", "server/deploy/systemd/Caddyfile"):
        with (machine.source / name).open("a") as file:
            file.write("# broken\n")
    done = machine.install("--caddy", ":80")
    assert done.returncode == 1
    assert done.stderr.endswith("did not become healthy, and the one before it runs again: its log is above.\n")
    assert machine.current() == first
    assert machine.read("etc/systemd/system/jaxcnn.service") == unit
    assert "broken" not in machine.read("etc/systemd/system/jaxcnn.socket")
    assert machine.read(proxy) == limits


def test_a_new_version_brings_its_units_and_limits(machine):
    assert machine.install("--caddy", ":80").returncode == 0
    for name in ("jaxcnn.service", "Caddyfile"):
        with (machine.units / name).open("a") as file:
            file.write("# second\n")
    assert machine.install("--caddy", "birds.example.org").returncode == 0
    assert machine.read("etc/systemd/system/jaxcnn.service").endswith("# second\n")
    assert machine.read("etc/caddy/Caddyfile").endswith("# second\n")
    assert "=birds.example.org\n" in machine.read("etc/systemd/system/caddy.service.d/jaxcnn.conf")


def test_another_python_gets_packages_of_its_own(machine):
    assert machine.install().returncode == 0
    first = machine.current()
    assert machine.install().returncode == 0
    assert machine.current() == first
    machine.write_python("Python 3.14.0")
    assert machine.install().returncode == 0
    second = machine.current()
    (machine.source / "pyproject.toml").write_text("second\n")
    assert machine.install().returncode == 0
    assert len({first, second, machine.current()}) == 3


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_the_user_of_the_service_may_enter_whatever_the_umask(machine, umask):
    done = machine.install(umask=umask)
    assert done.returncode == 0, done.stderr
    for path in (machine.root / "opt" / "jaxcnn", machine.current(), machine.current() / "server"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


UPGRADE = ["start jaxcnn.socket", "restart jaxcnn.service"]


def test_only_a_changed_socket_is_opened_anew(machine):
    assert machine.install().returncode == 0
    machine.changes_of_units()
    (machine.source / "server" / "code").write_text("second\n")
    assert machine.install().returncode == 0
    assert machine.changes_of_units() == UPGRADE
    with (machine.units / "jaxcnn.socket").open("a") as file:
        file.write("# third\n")
    assert machine.install().returncode == 0
    assert machine.changes_of_units() == ["stop jaxcnn.socket", *UPGRADE]
    assert machine.install().returncode == 0
    assert machine.changes_of_units() == UPGRADE


def test_the_socket_of_a_broken_version_is_closed_again(machine):
    assert machine.install().returncode == 0
    machine.changes_of_units()
    for name in ("server/code", "server/deploy/systemd/jaxcnn.socket"):
        with (machine.source / name).open("a") as file:
            file.write("# broken\n")
    assert machine.install().returncode == 1
    assert machine.changes_of_units() == ["stop jaxcnn.socket", *UPGRADE] * 2


def test_only_a_changed_proxy_is_restarted(machine):
    for site, command in ((":80", "restart"), (":80", "start"), ("birds.example.org", "restart")):
        assert machine.install("--caddy", site).returncode == 0
        assert machine.changes_of_units()[-1] == f"{command} caddy.service"
    with (machine.units / "Caddyfile").open("a") as file:
        file.write("# second\n")
    assert machine.install("--caddy", "birds.example.org").returncode == 0
    assert machine.changes_of_units()[-1] == "restart caddy.service"
    folder = machine.root / "etc" / "systemd" / "system" / "caddy.service.d"
    assert [path.name for path in folder.iterdir()] == ["jaxcnn.conf"]


def test_an_update_of_the_system_is_waited_for(machine):
    machine.write_faults_of_apt(*["E: Could not get lock /var/lib/apt/lists/lock."] * 3)
    done = machine.install()
    assert (done.returncode, done.stderr) == (0, "")
    machine.write_faults_of_apt("E: The list of sources could not be read.", "E: Not asked again.")
    done = machine.install()
    assert done.returncode == 1
    assert done.stderr == (
        "install.sh: the packages of the distribution cannot be installed: E: The list of sources could not be read.\n"
    )
