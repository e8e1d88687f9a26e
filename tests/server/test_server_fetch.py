"""Remote model files: from web servers that fail in every way, from S3, and from stand-ins of two other stores."""

import base64
import hashlib
import http.server
import json
import logging
import os
import shutil
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from object_store import open_s3, s3_server

from server import fetch
from server.errors import StartError
from server.source import Source

CONTENT = b"the bytes of a model " * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends CONTENT, or fails as the first folder of the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        fault = self.path.split("/")[1]
        getattr(self, fault.replace("-", "_"), self.whole)()

    def send(self, status, content=b"", *, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def whole(self):
        self.send(200, CONTENT)

    def cut(self):
        self.send(200, CONTENT[:50_000], length=len(CONTENT))
        self.close_connection = True

    def cut_once(self):
        if sum(path == self.path for path, _ in self.server.requests) == 1:
            self.cut()
        else:
            self.whole()

    def too_long(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT + b"more")
        self.close_connection = True

    def wrong(self):
        self.send(200, CONTENT[::-1])

    def silent(self):
        self.server.released.wait(20)
        self.close_connection = True

    def slow(self):
        self.send(200, length=len(CONTENT))
        for byte in CONTENT:
            if self.server.released.wait(0.05):
                break
            self.wfile.write(bytes([byte]))
        self.close_connection = True

    def absent(self):
        self.send(404)

    def forbidden(self):
        self.send(403)

    def busy(self):
        self.send(503)

    def garbage(self):
        self.wfile.write(b"\0\0\0 no HTTP\r\n\r\n")
        self.close_connection = True

    def loop(self):
        self.send(302, Location=self.path)

    def circle(self):
        count = int(self.path.split("/")[2]) + 1
        self.send(302, Location=f"/circle/{count}/model.onnx")

    def moved(self):
        self.send(302, Location="/whole/model.onnx")

    def downgrade(self):
        self.send(302, Location="http://127.0.0.1:9/model.onnx")

    # Stand-ins of the stores.
    def private_bucket(self):
        self.send(200, CONTENT) if self.headers.get("Authorization") == "Bearer of-google" else self.send(401)

    def computeMetadata(self):
        assert self.headers["Metadata-Flavor"] == "Google"
        self.send(200, json.dumps({"access_token": "of-google"}).encode())

    def owner(self):
        self.send(302, Location=f"https://127.0.0.1:{self.server.server_port}/whole/model.onnx")

    def log_message(self, *_):
        pass


class Web:
    """A web server in a thread."""

    def __init__(self, context=None):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.requests, self.server.released = [], threading.Event()
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.requests = self.server.requests
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.server.released.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1".split()
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path.with_suffix(".crt")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def web(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    monkeypatch.setattr(fetch, "_RETRY_SECONDS", (0, 0))
    with Web(context) as running:
        yield running


def source(text, digest=DIGEST):
    return Source.parse(f"{text}#sha256={digest}")


def refusal(text, cache, digest=DIGEST):
    with pytest.raises(StartError) as caught:
        fetch.fetch(source(text, digest), cache)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    return str(caught.value)


def test_a_local_file_stays_where_it_is(tmp_path):
    assert fetch.fetch(Source.parse("/srv/model.onnx"), tmp_path) == Path("/srv/model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_is_downloaded_once(web, tmp_path):
    for _ in range(2):
        path = fetch.fetch(source(f"https://{web.host}/models/birds.onnx?version=2"), tmp_path / "cache")
        assert path.read_bytes() == CONTENT
        assert path.name == "birds.onnx"
    assert len(web.requests) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["birds.onnx"]


def test_a_damaged_file_in_the_cache_is_replaced(web, tmp_path):
    birds = source(f"https://{web.host}/birds.onnx")
    fetch.fetch(birds, tmp_path).write_bytes(b"damaged")
    assert fetch.fetch(birds, tmp_path).read_bytes() == CONTENT


def test_what_a_killed_process_has_downloaded_is_removed(web, tmp_path):
    folder = tmp_path / DIGEST
    folder.mkdir()
    for name, age in ((".part-killed", 700), (".part-running", 500), ("other.onnx", 700)):
        (folder / name).write_bytes(b"half of a model")
        os.utime(folder / name, (time.time() - age,) * 2)
    fetch.fetch(source(f"https://{web.host}/birds.onnx"), tmp_path)
    assert {path.name for path in folder.iterdir()} == {".part-running", "other.onnx", "birds.onnx"}


def test_an_interrupted_download_is_tried_again(web, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert fetch.fetch(source(f"https://{web.host}/cut-once/a.onnx"), tmp_path).read_bytes() == CONTENT
    assert f"only 50000 of {len(CONTENT)} bytes arrived" in caplog.text


@pytest.mark.parametrize(
    ("fault", "complaint", "attempts"),
    [
        ("cut", "only 50000 of 105000 bytes arrived. Try again.", 3),
        ("busy", "its host responds 503 Service Unavailable. Try again.", 3),
        ("garbage", "its host cannot be reached (", 3),
        ("absent", "its host responds 404 Not Found. Check the URL.", 1),
        ("forbidden", "its host responds 403 Forbidden. Give the server's account the right to read it.", 1),
        ("wrong", f"its sha256 is {hashlib.sha256(CONTENT[::-1]).hexdigest()}. Set JAXCNN_MODEL to the checksum", 1),
        ("too-long", f"its sha256 is {hashlib.sha256(CONTENT + b'more').hexdigest()}.", 1),
        ("loop", "its host redirects more than 5 times. Check the URL.", 6),
        ("circle/0", "its host redirects more than 5 times. Check the URL.", 6),
        ("downgrade", "its host redirects from https to another scheme. Check the URL.", 1),
    ],
)
def test_a_host_that_fails(web, tmp_path, fault, complaint, attempts):
    text = refusal(f"https://{web.host}/{fault}/model.onnx", tmp_path)
    assert text.startswith(f"The model https://{web.host}/{fault}/model.onnx cannot be served: {complaint}")
    assert len(web.requests) == attempts


def test_a_redirect_is_followed(web, tmp_path):
    assert fetch.fetch(source(f"https://{web.host}/moved/model.onnx"), tmp_path).read_bytes() == CONTENT


def test_a_silent_host_is_given_up(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENT_SECONDS", 0.2)
    assert "its host was silent for 0.2 s" in refusal(f"https://{web.host}/silent/model.onnx", tmp_path)
    assert len(web.requests) == 3


def test_a_slow_download_is_bounded(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_TOTAL_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "_CHUNK_BYTES", 1)
    assert "it did not arrive within 0.3 s" in refusal(f"https://{web.host}/slow/model.onnx", tmp_path)


def test_a_file_without_a_length_is_bounded(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_MAX_BYTES", 1000)
    assert "it has more than 1000 bytes" in refusal(f"https://{web.host}/too-long/model.onnx", tmp_path)


def test_a_host_without_a_valid_certificate_is_refused(web, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "its host has no valid certificate (" in refusal(f"https://{web.host}/model.onnx", tmp_path)


def test_a_host_that_is_not_there(web, tmp_path):
    assert "its host cannot be reached (" in refusal("https://127.0.0.1:9/model.onnx", tmp_path)


def test_the_user_and_password_of_a_url_are_sent_to_its_host_alone(web, tmp_path):
    url = f"https://me:p%40ss@{web.host}/moved/model.onnx"
    assert fetch.fetch(source(url), tmp_path).read_bytes() == CONTENT
    basic = f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert web.requests == [("/moved/model.onnx", basic), ("/whole/model.onnx", None)]


def test_a_url_is_escaped(web, tmp_path):
    path = fetch.fetch(source(f"https://{web.host}/a b/modèle%25.onnx?token=a+b%26é"), tmp_path)
    assert (path.name, path.read_bytes()) == ("modèle%.onnx", CONTENT)
    assert web.requests == [("/a%20b/mod%C3%A8le%25.onnx?token=a+b%26%C3%A9", None)]


def test_an_invalid_url_is_refused_without_showing_what_it_holds(tmp_path, monkeypatch):
    text = refusal("https://me:secret@127.0.0.1:port/model.onnx?token=secret", tmp_path)
    assert text.endswith(
        "cannot be served: its URL is invalid. Check it, and the variable that sets another endpoint, if there is one."
    )
    assert "secret" not in text
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.example")
    assert "its URL is invalid. Check it, and the variable" in refusal("hf://owner/birds/model.onnx", tmp_path)


def test_a_cache_that_cannot_be_written_to(web, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot be written to .* Set JAXCNN_CACHE to a folder with room"):
        fetch.fetch(source(f"https://{web.host}/model.onnx"), tmp_path / "file")


def test_hugging_face(web, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"https://{web.host}")
    monkeypatch.setenv("HF_TOKEN", "of-hf\n")
    assert fetch.fetch(source("hf://owner/birds@v1/onnx/model.onnx"), tmp_path).read_bytes() == CONTENT
    # The token does not follow the redirect to the host that has the content.
    assert web.requests == [("/owner/birds/resolve/v1/onnx/model.onnx", "Bearer of-hf"), ("/whole/model.onnx", None)]


def test_google_cloud_storage(web, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"https://{web.host}")
    assert fetch.fetch(source("gs://public/a folder/model.onnx"), tmp_path / "a").read_bytes() == CONTENT
    assert web.requests == [("/public/a%20folder/model.onnx", None)]
    with Web() as metadata:
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.host)
        assert fetch.fetch(source("gs://private-bucket/model.onnx"), tmp_path / "b").read_bytes() == CONTENT
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    assert "its host responds 401" in refusal("gs://private-bucket/model.onnx", tmp_path / "c")


@pytest.fixture
def s3(monkeypatch):
    with s3_server() as url:
        client = open_s3(url, monkeypatch)
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="a folder/birds.onnx", Body=CONTENT)
        yield client


def test_s3(s3, tmp_path):
    path = fetch.fetch(source("s3://models/a folder/birds.onnx"), tmp_path / "a")
    assert (path.name, path.read_bytes()) == ("birds.onnx", CONTENT)
    assert "S3 responds 404 NoSuchKey. Check the URL." in refusal("s3://models/absent.onnx", tmp_path / "b")
    assert "its sha256 is" in refusal("s3://models/a folder/birds.onnx", tmp_path / "c", "0" * 64)


def test_s3_without_boto3(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    assert "s3: needs the package boto3. Install it" in refusal("s3://models/birds.onnx", tmp_path)


def test_a_server_of_a_remote_model(web, serve, model_path, tmp_path, monkeypatch):
    content = model_path.read_bytes()
    monkeypatch.setattr(Handler, "whole", lambda self: self.send(200, content))
    digest = hashlib.sha256(content).hexdigest()
    settings = {"JAXCNN_CACHE": str(tmp_path / "cache"), "SSL_CERT_FILE": os.environ["SSL_CERT_FILE"]}
    with serve(JAXCNN_MODEL=f"https://{web.host}/birds.onnx#sha256={digest}", **settings) as server:
        assert server.client.get("/v2/models/birds").status_code == 200
        assert server.client.get("/model.onnx").content == content
