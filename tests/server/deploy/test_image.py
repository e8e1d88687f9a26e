"""The image, built from its Dockerfile and run: without a shell, on a read-only root, as root and as another user.

Only the base is another one: a Debian that mmdebstrap makes. JAXCNN_TEST_BASE may name its archive, made earlier with
`mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates trixie base.tar`.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from pictures import make_picture

from server.model import load
from tests.server.wire import ask_until_unready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[3]
LARGEST = 220e6
TOOLS = ("buildah", "mmdebstrap", "unshare", "setpriv")
BASE = os.environ.get("JAXCNN_TEST_BASE")

# Runs a command as PID 1 on a read-only root, with a folder of the host mounted at a place, read-only or not, if there
# is one.
CONTAINER = """
root=$1 scratch=$2 user=$3 mounted=$4 place=$5 mode=$6; shift 6
mount -t tmpfs none "$scratch" && mkdir "$scratch/up" "$scratch/work" "$scratch/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$scratch/up,workdir=$scratch/work" "$scratch/root"
cd "$scratch/root"
mkdir -p "$place"
mount -o remount,ro "$scratch/root"
if [ -n "$mounted" ]; then
    mount --bind "$mounted" "$place" && mount -o "remount,bind,$mode" "$place"
fi
mount -t tmpfs none tmp && chmod 1777 tmp
mount -t proc proc proc && mount --rbind /dev dev
exec setpriv --no-new-privs chroot --userspec="$user:$user" --groups="$user" . "$@"
"""


class Buildah:
    """Images in a store of this test."""

    def __init__(self, folder):
        self.options = ["--root", folder / "store", "--runroot", folder / "run", "--storage-driver", "vfs"]

    def __call__(self, command, *arguments):
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        line = ["buildah", *self.options, command, *arguments]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} {arguments}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def build(self, name, *options):
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        same = ["--format", "docker", "--timestamp", "0", "--layers=false", "--pull=never"]
        same += ["--volume", f"{certificates}:{certificates}:ro", "--build-arg", "BASE=localhost/base"]
        return self("build", *same, "--file", "server/deploy/Dockerfile", "--tag", name, *options, ".")

    def inspect(self, name):
        return json.loads(self("inspect", "--type", "image", name))["OCIv1"]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip(f"building an image needs root, and {', '.join(TOOLS)}")
    folder = tmp_path_factory.mktemp("images")
    base = Path(BASE) if BASE else folder / "base.tar"
    if not BASE:
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", packages, "trixie", base], check=True)
    tool = Buildah(folder)
    container = tool("from", "scratch")
    tool("add", "--quiet", container, str(base), "/")
    tool("config", "--env", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", container)
    tool("commit", "--quiet", "--rm", container, "base")
    yield tool
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(buildah):
    buildah.build("first")
    return "first"


@pytest.fixture(scope="module")
def files(buildah, image):
    """The folder that has the files of the image."""
    return Path(buildah("mount", buildah("from", "--pull-never", image)))


def start(files, image_config, scratch, command, *, user, mount=("", "work", "ro"), trace=None, **settings):
    """Starts a container, and returns its process and its log; strace writes some system calls to `trace`."""
    scratch.mkdir()
    environment = dict(line.split("=", 1) for line in image_config["config"]["Env"]) | settings
    # The tools that prepare the container are not in it.
    environment["PATH"] += ":/bin:/usr/sbin:/sbin"
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-euc", CONTAINER, "sh"]
    line += [files, scratch, str(user), *map(str, mount), *command]
    if trace is not None:
        calls = "--trace=execve,connect,openat,mkdir,mkdirat,rename,unlink"
        line = ["strace", "--follow-forks", "--daemonize", "--quiet=all", calls, f"--output={trace}", *line]
    log = scratch.with_suffix(".log")
    with log.open("wb") as stream:
        return subprocess.Popen(line, env=environment, stdout=stream, stderr=stream), log


@contextlib.contextmanager
def running(files, image_config, scratch, port, *, user, mounted="", trace=None):
    """Runs the server until the end of the block, and yields its process."""
    command = ["python3", "-m", "server.deploy.container", "serve"]
    mount = (mounted, "opt/ml/model", "ro")
    process, log = start(files, image_config, scratch, command, user=user, mount=mount, trace=trace, PORT=str(port))
    try:
        wait_until_ready(process, port, log)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process, port, log):
    while True:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                return
        time.sleep(0.02)


def first_process(process):
    """Returns the number that PID 1 of the container has outside of it."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def stop(process, number=signal.SIGTERM):
    """Sends a signal to PID 1 of the container, as a runtime does, and returns the container's exit status."""
    os.kill(first_process(process), number)
    return process.wait(timeout=60)


def predict(client_or_port, picture):
    body = {"image": base64.b64encode(picture).decode()}
    if isinstance(client_or_port, int):
        url = f"http://127.0.0.1:{client_or_port}/invocations"
        return httpx.post(url, json=body, trust_env=False).raise_for_status().json()
    return client_or_port.post("/predict", json=body).raise_for_status().json()


def test_the_image_is_small_and_has_no_shell(buildah, image, files):
    sizes = [path.lstat().st_size for path in files.rglob("*") if path.is_file() and not path.is_symlink()]
    model = files / "srv" / "model" / "tiny_imagenet.onnx"
    size = sum(sizes) - model.stat().st_size
    print(f"{size / 1e6:.0f} MB without the model")
    assert size <= LARGEST
    programs = {path.name for folder in ("usr/bin", "usr/sbin", "usr/local/bin") for path in files.glob(f"{folder}/*")}
    assert programs == {"python3", "python3.13"}
    config = buildah.inspect(image)["config"]
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["python3", "-m", "server.deploy.container"], ["serve"])
    check = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]["Healthcheck"]
    assert check["Test"] == ["CMD", "python3", "-m", "server.deploy.container", "health"]
    assert config["Labels"]["jaxcnn.model.sha256"] == load(model, max_batch=1, threads=1).digest


def test_its_python_trusts_the_usual_authorities(files):
    program = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    done = subprocess.run(["chroot", files, "python3", "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


def test_two_builds_give_the_same_layers(buildah, image):
    buildah.build("second")
    assert buildah.inspect(image)["rootfs"] == buildah.inspect("second")["rootfs"]


def test_another_model_needs_its_own_checksum(buildah):
    with pytest.raises(AssertionError, match=r"tiny_imagenet\.int8\.onnx: FAILED"):
        buildah.build("wrong", "--build-arg", "MODEL=server/models/tiny_imagenet.int8.onnx")


def test_it_predicts_what_the_plain_server_predicts(buildah, image, files, serve, free_port, tmp_path):
    path = tmp_path / "photo.jpg"
    make_picture(1, seed=7, size=300).save(path)
    start = time.monotonic()
    with running(files, buildah.inspect(image), tmp_path / "container", free_port, user=10001) as process:
        print(f"ready after {time.monotonic() - start:.2f} s")
        with serve() as plain:
            assert predict(free_port, path.read_bytes()) == predict(plain.client, path.read_bytes())
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/opt/jaxcnn"}
        health = ["chroot", files, "python3", "-m", "server.deploy.container", "health"]
        assert subprocess.run(health, env=environment | {"PORT": str(free_port)}, check=False).returncode == 0
        assert stop(process) == 0
        assert subprocess.run(health, env=environment | {"PORT": str(free_port)}, check=False).returncode == 1


def test_as_root_with_sagemakers_model_it_drains_without_a_loss(buildah, image, files, model_path, free_port, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(model_path, folder)
    config = buildah.inspect(image)
    with running(files, config, tmp_path / "container", free_port, user=0, mounted=folder) as process:
        assert httpx.get(f"http://127.0.0.1:{free_port}/v2/models/colours", trust_env=False).status_code == 200
        lost: list[Exception] = []
        clients = [threading.Thread(target=ask_until_unready, args=(free_port, lost)) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        assert stop(process) == 0
        for client in clients:
            client.join()
        assert lost == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_it_connects_to_nothing_and_writes_nothing(buildah, image, files, free_port, tmp_path):
    """Not even the telemetry of onnxruntime, which would keep an identifier of the machine in a file."""
    trace = tmp_path / "trace"
    config = buildah.inspect(image)
    with running(files, config, tmp_path / "container", free_port, user=10001, trace=trace) as process:
        make_picture(1, seed=7, size=300).save(tmp_path / "photo.jpg")
        predict(free_port, (tmp_path / "photo.jpg").read_bytes())
        time.sleep(3)
        root = Path("/proc", str(first_process(process)), "root")
        assert list((root / "tmp").iterdir()) == []
        assert stop(process) == 0
    # What comes before the program's start prepares the container.
    calls = trace.read_text()
    calls = calls[calls.rindex('execve("') :]
    assert "tiny_imagenet.onnx" in calls
    found = re.findall(r"^.*(?:connect\(|mkdir|rename|unlink|O_CREAT|O_WRONLY|O_RDWR).*$", calls, re.MULTILINE)
    # The C library asks a local daemon for the user's home before it reads /etc/passwd.
    assert [line for line in found if "/dev/null" not in line and "/nscd/" not in line] == []


def epochs(workdir):
    """The epochs of a run so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record["epoch"] for record in map(json.loads, lines) if "epoch" in record]


def wait_for_epoch(process, workdir, number, log):
    while max(epochs(workdir), default=0) < number:
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def test_a_training_that_is_killed_or_stopped_resumes(buildah, tmp_path):
    """As on a spot instance: the machine dies, the next one gets notice, the third finishes."""
    buildah.build("train", "--target", "train")
    files = Path(buildah("mount", buildah("from", "--pull-never", "train")))
    config = buildah.inspect("train")
    assert config["config"]["User"] == "10001:10001"
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, 10001, 10001)
    workdir = work / "runs" / "digits"
    command = [*config["config"]["Entrypoint"], "digits", "--epochs", "20", "--workdir", "/training/runs/digits"]

    def train(name):
        return start(files, config, tmp_path / name, command, user=10001, mount=(work, "training", "rw"))

    process, log = train("first")
    wait_for_epoch(process, workdir, 2, log)
    assert stop(process, signal.SIGKILL) != 0
    process, log = train("second")
    wait_for_epoch(process, workdir, 4, log)
    assert stop(process) == 128 + signal.SIGTERM, log.read_text()
    assert "resuming at step" in log.read_text()
    assert "stopped by SIGTERM and saved" in log.read_text()
    process, log = train("third")
    assert process.wait(timeout=300) == 0, log.read_text()
    assert "resuming at step" in log.read_text()
    assert max(epochs(workdir)) == 20
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["top1"] > 0.9
    assert list(load(workdir / "model.onnx", max_batch=1, threads=1).names) == [str(digit) for digit in range(10)]
