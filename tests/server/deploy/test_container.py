"""What runs inside the image, and what the Dockerfile promises, without building it."""

import contextlib
import errno
import http.server
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from server.deploy import container, lock, rootfs

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "server" / "deploy"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PROJECT, LOCK = (ROOT / "pyproject.toml").read_text(), (ROOT / "requirements.lock").read_text()


# Without the settings of whoever runs the tests.
INHERITED = {name: value for name, value in os.environ.items() if not name.startswith("JAXCNN_")}


def run(*arguments, **environment):
    command = [sys.executable, "-m", "server.deploy.container", *arguments]
    return subprocess.run(command, cwd=ROOT, env=INHERITED | environment, capture_output=True, text=True, check=False)


def test_sagemakers_models_come_before_the_image_s(tmp_path):
    sagemaker, image = tmp_path / "a", tmp_path / "b"
    assert container.find_models([sagemaker, image]) is None
    image.mkdir()
    (image / "image.onnx").touch()
    (image / "._image.onnx").touch()  # As macOS leaves them.
    assert container.find_models([sagemaker, image]) == image / "image.onnx"
    unpacked = sagemaker / "unpacked"
    unpacked.mkdir(parents=True)
    (unpacked / "mounted.onnx").touch()
    assert container.find_models([sagemaker, image]) == unpacked / "mounted.onnx"
    (unpacked / "second.onnx").touch()
    assert container.find_models([sagemaker, image]) == unpacked
    (sagemaker / "third.onnx").touch()
    message = r"a has ONNX files in 2 folders: put them into one, or set JAXCNN_MODEL to NAME=FILE,NAME=FILE\.$"
    with pytest.raises(container.ContainerError, match=message):
        container.find_models([sagemaker, image])


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "8080 ", "٣"])
def test_an_invalid_port_is_refused(text):
    done = run("serve", PORT=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"PORT is {text!r}: set it to an integer from 1 to 65535, or unset it.\n"


def test_an_unknown_command_is_refused():
    done = run("train")
    assert (done.returncode, done.stderr) == (2, "There is no command 'train': use serve or health.\n")


def test_the_port_is_8080_unless_set():
    assert container.read_port({}) == container.read_port({"PORT": ""}) == 8080
    assert container.read_port({"PORT": "1"}) == 1


def test_without_ipv6_it_listens_on_ipv4_alone(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    assert container.find_host() == ""
    monkeypatch.setattr("socket.socket.bind", refuse)
    assert container.find_host() == "0.0.0.0"


@pytest.mark.parametrize("status", [200, 503])
def test_health_is_what_healthz_responds(status, monkeypatch):
    # A proxy, for models on the internet, would look for the server on its own machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/healthz"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        assert container.is_healthy(server.server_port) is (status == 200)
        server.shutdown()
        thread.join()
    assert not container.is_healthy(server.server_port)


@contextlib.contextmanager
def serving(command, log, port, **environment):
    """Runs a server until SIGTERM; the block begins once it responds."""
    environment = {**INHERITED, "JAXCNN_DRAIN_SECONDS": "0", "PORT": str(port), **environment}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        while run("health", PORT=str(port)).returncode:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("streams", ["", " <&- >&- 2>&-"], ids=["log", "closed streams"])
def test_it_serves_until_sigterm(model_path, free_port, tmp_path, streams):
    command = ["sh", "-c", f"exec {sys.executable} -m server.deploy.container serve{streams}"]
    with serving(command, tmp_path / "log", free_port, JAXCNN_MODEL=str(model_path)) as client:
        response = client.get("/ping")
        assert (response.status_code, response.content) == (200, b"")
        assert "server" not in response.headers
        assert httpx.get(f"http://[::1]:{free_port}/ping", trust_env=False).status_code == 200


def test_all_models_of_a_folder_are_served(model_builder, free_port, tmp_path):
    folder = tmp_path / "model" / "unpacked"
    folder.mkdir(parents=True)
    for name in ("birds", "cats"):
        model_builder(folder / f"{name}.onnx")
    program = f"""
import functools, pathlib, sys
from server.deploy import container
container.find_models = functools.partial(container.find_models, [pathlib.Path({str(folder.parent)!r})])
sys.exit(container.main(["serve"]))
"""
    with serving([sys.executable, "-c", program], tmp_path / "log", free_port) as client:
        assert [model["name"] for model in client.post("/v2/repository/index").json()] == ["birds", "cats"]
        assert client.get("/model.json").json()["name"] == "birds"
        assert client.get("/v2/models/cats/ready").status_code == 200


def test_the_base_is_pinned_and_the_model_is_the_shipped_one():
    assert re.findall(r"^ARG BASE=(.*)$", DOCKERFILE, re.MULTILINE)[0].count("@sha256:") == 1
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE}", "tools", "scratch"}
    described = json.loads((ROOT / "server" / "models" / "tiny_imagenet.json").read_text())
    assert set(re.findall(r"^ARG MODEL_SHA256=(.*)$", DOCKERFILE, re.MULTILINE)) == {described["sha256"]}
    assert set(re.findall(r"^ARG MODEL=(.*)$", DOCKERFILE, re.MULTILINE)) == {"server/models/tiny_imagenet.onnx"}


def test_the_dockerfile_passes_hadolint():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_has_the_certificates_where_openssl_looks_for_them(tmp_path, monkeypatch):
    bundle, root = tmp_path / "etc" / "ssl" / "certs" / "ca-certificates.crt", tmp_path / "root"
    bundle.parent.mkdir(parents=True)
    bundle.write_text("certificates")
    defaults = ssl.get_default_verify_paths()._replace(
        openssl_cafile=f"{tmp_path}/usr/lib/ssl/cert.pem", openssl_capath=f"{tmp_path}/usr/lib/ssl/certs"
    )
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: defaults)
    rootfs.copy_certificates(root, bundle)
    inside = root / tmp_path.relative_to("/")
    assert (inside / bundle.relative_to(tmp_path)).read_text() == "certificates"
    # Links into the folder of certificates, so that one that is mounted there counts.
    assert (inside / "usr/lib/ssl/cert.pem").readlink() == bundle
    assert (inside / "usr/lib/ssl/certs").readlink() == bundle.parent


def names(text):
    return set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))


def test_the_server_installs_only_its_own_part_of_the_lock():
    part = lock.subset(PROJECT, LOCK, "serve")
    assert {"numpy", "pillow", "onnxruntime", "starlette", "uvicorn", "uvloop", "anyio"} <= names(part)
    assert not names(part) & {"jax", "onnx", "pytest", "scipy", "boto3"}
    assert part.count("--hash=sha256:") > len(names(part))
    assert all(block in LOCK for block in re.split(r"^(?=[\w.-]+==)", part, flags=re.MULTILINE))


def test_training_installs_what_its_extras_of_extras_need():
    assert {"jax", "jaxlib", "flax", "onnx", "orbax-checkpoint", "tensorflow-datasets"} <= names(
        lock.subset(PROJECT, LOCK, "train")
    )


def test_packages_for_gpus_are_of_the_version_that_is_locked():
    cuda = (FOLDER / "cuda.lock").read_text()
    assert not names(cuda) & names(LOCK)
    versions = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", cuda, re.MULTILINE))
    jax = re.findall(r"^jax==([^\s;]+)", LOCK, re.MULTILINE)[0]
    assert versions["jax-cuda13-plugin"] == versions["jax-cuda13-pjrt"] == jax


def test_an_extra_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="There is no extra 'server': use one of predict, export, train, serve"):
        lock.subset(PROJECT, LOCK, "server")
    with pytest.raises(ValueError, match=r"requirements\.lock has no "):
        lock.subset(PROJECT, "numpy==1 \\\n", "serve")
