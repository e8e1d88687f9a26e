"""Local object stores for tests: moto's server for S3, and a small stand-in for Google Cloud Storage."""

import contextlib
import http.server
import json
import logging
import threading
import urllib.request
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


@contextlib.contextmanager
def s3_server():
    """Starts the server and yields its URL."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def open_s3(url, monkeypatch):
    """Empties a server, sets the variables that lead to it, and returns boto3's client for it."""
    boto3 = pytest.importorskip("boto3")
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


class GoogleHandler(http.server.BaseHTTPRequestHandler):
    """The part of Google's JSON API that lists, reads, writes and deletes objects."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content=b"", status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(content)

    @property
    def name(self):
        return unquote(urlsplit(self.path).path.partition("/o/")[2])

    def do_GET(self):
        objects, query = self.server.objects, parse_qs(urlsplit(self.path).query)
        if not self.name:
            prefix = query.get("prefix", [""])[0]
            items = [{"name": name, "generation": "1"} for name in sorted(objects) if name.startswith(prefix)]
            self.answer(json.dumps({"items": items}).encode())
        elif self.name in objects:
            self.answer(objects[self.name])
        else:
            self.answer(status=404)

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        (name,) = parse_qs(urlsplit(self.path).query)["name"]
        self.server.objects[name] = content
        self.answer(json.dumps({"name": name, "generation": "1"}).encode())

    def do_DELETE(self):
        self.answer(status=204 if self.server.objects.pop(self.name, None) is not None else 404)


@contextlib.contextmanager
def google_server(monkeypatch):
    """Starts the stand-in, sets the variable that leads to it, and yields its objects by their names."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), GoogleHandler) as server:
        server.objects = {}
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")
        yield server.objects
        server.shutdown()
