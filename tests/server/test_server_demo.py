"""The files of the demo page, including files that change while they are requested."""

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server import demo, files, model
from server.admission import Admission
from server.digests import Digests
from server.metrics import Metrics
from server.prepared import PreparedResponses
from server.settings import Settings


class Site:
    """The part of `Service` and of its default model that the page's endpoints use, and a client."""

    def __init__(self, path, reload_seconds=0):
        self.path = path
        self.settings = SimpleNamespace(page=True, onnxruntime_web=path.parent, reload_seconds=reload_seconds)
        self.model = model.load(path, max_batch=2, threads=1)
        self.admission = Admission(Settings(), Metrics())
        self.digests = Digests()
        self.digests.note(self.model)
        self.prepared = PreparedResponses()
        self.default = self

    def ask(
        self,
        endpoint=demo.model_file,
        *,
        query=None,
        method="GET",
        between=lambda: None,
        leaves_after=None,
        known=None,
        **parameters,
    ):
        """Returns status, content, and whether it is complete.

        `between` runs after the headers are decided. The client leaves after so many messages, which nothing but
        `receive` shows. It has the content of the ETag `known` already.
        """

        async def send(message):
            sent.append(message)

        async def receive():
            while leaves_after is None or len(sent) < leaves_after:
                await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def main():
            scope = {
                "type": "http",
                "method": method,
                "query_string": (self.model.digest if query is None else query).encode(),
                "headers": [] if known is None else [(b"if-none-match", known.encode())],
                "path_params": parameters,
                "state": {"service": self},
            }
            response = await endpoint(Request(scope))
            between()
            await response(scope, receive, send)

        sent = []
        asyncio.run(main())
        start, *parts = sent
        self.headers = Headers(raw=start["headers"])
        return (
            start["status"],
            b"".join(message["body"] for message in parts),
            bool(parts) and not parts[-1].get("more_body", False),
        )

    def refusal(self, *arguments, **options):
        with pytest.raises(HTTPException) as caught:
            self.ask(*arguments, **options)
        assert caught.value.status_code == 404
        return caught.value.detail


@pytest.fixture
def path(model_path, tmp_path):
    return shutil.copy(model_path, tmp_path / "served.onnx")


@pytest.fixture
def site(path):
    return Site(path)


@pytest.fixture
def other(model_builder, tmp_path):
    return model_builder(tmp_path / "other.onnx", metadata={"names": ["a", "b", "c", "d", "e"]})


@pytest.fixture
def digests(monkeypatch):
    """Records the digests that are computed."""
    found, compute = [], files.digest
    monkeypatch.setattr(files, "digest", lambda file: found.append(compute(file)) or found[-1])
    return found


@pytest.mark.parametrize("change", ["touched", "copied"])
def test_a_touched_or_copied_model_file_is_sent_and_hashed_once(site, digests, change, tmp_path):
    content = site.path.read_bytes()
    assert site.ask() == (200, content, True)
    assert digests == []
    if change == "touched":
        os.utime(site.path, ns=(0, 0))
    else:
        shutil.copy(site.path, tmp_path / "copy").replace(site.path)
    for _ in range(3):
        assert site.ask() == (200, content, True)
    assert digests == [site.model.digest]


def test_a_replaced_model_file_is_refused_with_what_to_do_and_hashed_once(site, other, digests):
    content = site.path.read_bytes()
    other.replace(site.path)
    for _ in range(3):
        text = site.refusal()
        assert text.startswith("The model file has been replaced, but the server still has the old model: ")
        assert text.endswith("must restart it, or set JAXCNN_RELOAD_SECONDS.")
    assert len(digests) == 1
    site.path.write_bytes(content)
    assert site.ask() == (200, content, True)


def test_with_hot_reload_the_visitor_is_asked_to_wait(path, other):
    site = Site(path, reload_seconds=7)
    other.replace(path)
    assert "checks every 7 seconds, has not loaded the new one yet: reload the page later" in site.refusal()


def test_a_page_with_an_old_model_is_asked_to_reload(site):
    assert site.refusal(query="0" * 64) == "The model file has been replaced: reload the page."


def test_a_file_replaced_before_it_is_sent_is_still_sent(site, other):
    content = site.path.read_bytes()
    assert site.ask(between=lambda: other.replace(site.path)) == (200, content, True)
    content = site.path.read_bytes()
    assert site.ask(query="", between=site.path.unlink) == (200, content, True)


@pytest.mark.parametrize("length", [0, 1000, None, 2000])
def test_a_file_written_to_before_it_is_sent_is_cut_short(site, length, caplog):
    size = site.path.stat().st_size if length is None else length
    status, content, is_whole = site.ask(between=lambda: site.path.write_bytes(bytes(size)))
    assert (status, content, is_whole) == (200, b"", False)
    assert "was written to while it was being sent" in caplog.text


def test_a_file_written_to_while_it_is_hashed_is_cut_short(site, monkeypatch):
    def digest_and_write(file):
        found = compute(file)
        site.path.write_bytes(bytes(site.path.stat().st_size))
        return found

    compute = files.digest
    monkeypatch.setattr(files, "digest", digest_and_write)
    site.path.touch()
    assert site.ask() == (200, b"", False)


def test_a_file_of_many_chunks_is_sent_whole(site, monkeypatch):
    monkeypatch.setattr(demo, "_CHUNK_BYTES", 100)
    assert site.ask() == (200, site.path.read_bytes(), True)
    assert site.ask(method="HEAD") == (200, b"", True)


def test_a_client_that_leaves_ends_the_download(site, monkeypatch):
    monkeypatch.setattr(demo, "_CHUNK_BYTES", 100)
    assert site.ask(leaves_after=3) == (200, site.path.read_bytes()[:200], False)


def test_an_empty_file_is_sent_too(site):
    name = "ort.wasm.min.mjs"
    (site.path.parent / name).touch()
    assert site.ask(demo.runtime_file, name=name) == (200, b"", True)


def test_files_of_two_versions_of_the_runtime_differ_in_their_etags(site, digests):
    name = "ort-wasm-simd-threaded.mjs"
    path = site.path.parent / name
    path.write_text("1.26.0")
    assert site.ask(demo.runtime_file, name=name) == (200, b"1.26.0", True)
    first = site.headers["etag"]
    assert site.headers["cache-control"] == "no-cache"
    for _ in range(3):
        assert site.ask(demo.runtime_file, name=name, known=first)[:2] == (304, b"")
        assert site.headers["etag"] == first
    assert len(digests) == 1
    # A package manager gives all files the same time.
    newer = site.path.parent / "newer"
    newer.write_text("1.27.0")
    os.utime(newer, ns=(path.stat().st_mtime_ns,) * 2)
    newer.replace(path)
    assert site.ask(demo.runtime_file, name=name, known=first) == (200, b"1.27.0", True)
    assert site.headers["etag"] != first


def test_a_file_that_many_ask_for_at_once_is_hashed_once(site, digests):
    async def main():
        request = Request({**scope, "path_params": {"name": name}})
        responses = await asyncio.gather(*(demo.runtime_file(request) for _ in range(9)))
        for response in responses:
            response.file.close()

    name = "ort.wasm.min.mjs"
    (site.path.parent / name).write_text("runtime")
    scope = {"type": "http", "method": "GET", "headers": [], "state": {"service": site}}
    asyncio.run(main())
    assert len(digests) == 1


def test_a_file_that_cannot_be_read_is_reported(site, locked):
    site.settings.onnxruntime_web = locked
    text = site.refusal(demo.runtime_file, name="ort.wasm.min.mjs")
    assert text == "The server cannot read this file of the demo page (Permission denied): ask its operator."
    site.settings.onnxruntime_web = Path("/", "x" * 300)
    assert "File name too long" in site.refusal(demo.runtime_file, name="ort.wasm.min.mjs")
    site.model = dataclasses.replace(site.model, path=locked / "model.onnx")
    assert "Permission denied" in site.refusal(query="")


def test_a_file_of_an_unknown_kind_is_sent_as_bytes(site, monkeypatch, tmp_path):
    (tmp_path / "icon.xyz").write_bytes(b"an icon")
    monkeypatch.setattr(demo, "_FOLDER", tmp_path)
    monkeypatch.setattr(demo, "_NAMES", {"icon.xyz"})
    assert site.ask(demo.page_file, name="icon.xyz") == (200, b"an icon", True)
    assert site.headers["content-type"] == "application/octet-stream"
