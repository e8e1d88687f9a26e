"""Hot reload, with a real model and injected failures."""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from crashes import SCHEDULES, torn

from export.seal import seal
from server import files, model, reload
from server.metrics import Metrics, ModelMetrics
from server.settings import Settings
from server.source import Source


class Service:
    """The part of `Service` that `reload.watch` uses, and of its one model."""

    def __init__(self, path):
        self.settings = Settings(model={"served": Source(path=path)}, max_batch=2, threads=1, reload_seconds=0.01)
        self.metrics = ModelMetrics(Metrics(), "served")
        self.has_rejected = False
        self.name = "served"
        self.model = model.load(path, max_batch=2, threads=1)
        self.models = {self.name: self}

    def serve(self, new):
        self.model = new

    def reloads(self, result):
        return self.metrics._reloads[result]._value.get()


@pytest.fixture
def service(model_path, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(model_path, path)
    return Service(path)


@pytest.fixture
def other(model_builder, tmp_path):
    return model_builder(tmp_path / "other.onnx", metadata={"names": ["a", "b", "c", "d", "e"]})


def watch_until(service, condition, wake: asyncio.Event | None = None) -> None:
    async def main():
        watcher = asyncio.create_task(reload.watch(service, wake or asyncio.Event()))
        try:
            async with asyncio.timeout(20):
                while not condition():
                    assert not watcher.done()
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # Time for anything further that the watch would do.
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    asyncio.run(main())


def test_a_file_replaced_before_the_watch_begins_is_loaded(service, other):
    other.replace(service.model.path)
    watch_until(service, lambda: service.model.names[0] == "a")
    assert (service.reloads("succeeded"), service.reloads("failed")) == (1, 0)


def test_a_file_that_is_missing_for_a_while_is_not_a_failure(service, other):
    service.model.path.unlink()
    watch_until(service, lambda: True)
    assert (service.reloads("succeeded"), service.reloads("failed")) == (0, 0)
    other.replace(service.model.path)
    watch_until(service, lambda: service.model.names[0] == "a")


def test_a_file_replaced_just_before_it_is_loaded_is_loaded_once(service, other, monkeypatch):
    load = model.load

    def replace_and_load(path, **options):
        if other.exists():
            other.replace(path)
        return load(path, **options)

    monkeypatch.setattr(model, "load", replace_and_load)
    service.model.path.touch()
    watch_until(service, lambda: service.model.names[0] == "a")
    assert service.reloads("succeeded") == 1


def test_a_file_system_that_does_not_respond_holds_up_nothing(service, other, monkeypatch):
    go, seen = threading.Event(), []

    def wait(path):
        seen.append(path)
        assert go.wait(20)
        return signature_of(path)

    def is_replaced():
        if seen:
            go.set()
        return service.model.names[0] == "a"

    signature_of = files.signature_of
    monkeypatch.setattr(files, "signature_of", wait)
    other.replace(service.model.path)
    watch_until(service, is_replaced)
    assert go.is_set()


def test_a_lack_of_threads_does_not_end_the_watch(service, other, monkeypatch):
    start = threading.Thread.start

    def refuse_once(thread):
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    other.replace(service.model.path)
    watch_until(service, lambda: service.model.names[0] == "a")
    assert service.reloads("failed") == 0


def test_an_invalid_file_is_logged_in_one_line(service, caplog):
    service.model.path.write_bytes(b"no model")
    watch_until(service, lambda: service.reloads("failed") > 0)
    (record,) = caplog.records
    assert "onnxruntime cannot open it" in record.message
    assert not record.exc_info


def test_a_file_that_cannot_be_read_to_its_end_is_logged_in_one_line(service, monkeypatch, caplog):
    def fail(*_):
        raise OSError(5, "Input/output error")

    model_file = onnx.load(service.model.path)
    onnx.helper.set_model_props(model_file, {**{p.key: p.value for p in model_file.metadata_props}, "checksum": '"0"'})
    monkeypatch.setattr("server.integrity.has_checksum", fail)
    onnx.save(model_file, service.model.path)
    watch_until(service, lambda: service.reloads("failed") > 0)
    (record,) = caplog.records
    assert f"{service.model.path} cannot be served: it cannot be read (Input/output error). Set" in record.message
    assert not record.exc_info


def test_a_file_that_is_written_in_place_is_served_only_when_it_is_whole(service, other):
    """What a copy that is not finished, or a power cut, leaves at its name keeps the old model."""
    old, new, random = service.model.path.read_bytes(), other.read_bytes(), np.random.default_rng(0)
    new = seal(new)
    for _ in range(SCHEDULES // 4):
        found = torn(old, new, random)
        service.model.path.write_bytes(found)
        asyncio.run(reload._load(service, service))
        assert service.model.names[0] == ("a" if found == new else "red")
        service.model = model.load(restore(service.model.path, old), max_batch=2, threads=1)


def restore(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("failure", [MemoryError(), OSError(24, "Too many open files"), RuntimeError("a defect")])
def test_any_failure_is_logged_and_the_next_file_is_tried(service, other, monkeypatch, caplog, failure):
    load = model.load

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(model, "load", fail)
    service.model.path.touch()
    watch_until(service, lambda: service.reloads("failed") > 0)
    (record,) = caplog.records
    assert "still serving the old one" in record.message
    assert record.exc_info[1] is failure
    assert service.reloads("failed") == 1

    monkeypatch.setattr(model, "load", load)
    other.replace(service.model.path)
    watch_until(service, lambda: service.model.names[0] == "a")


def test_a_rejected_file_is_tried_again_on_request(service, other, monkeypatch):
    """The reason may have passed, such as a lack of memory or of descriptors."""

    def fail(*_, **__):
        raise OSError(24, "Too many open files")

    def is_replaced():
        if service.reloads("failed") == 1:
            monkeypatch.undo()
            wake.set()
        return service.model.names[0] == "a"

    wake = asyncio.Event()
    monkeypatch.setattr(model, "load", fail)
    other.replace(service.model.path)
    watch_until(service, is_replaced, wake)
    assert (service.reloads("succeeded"), service.reloads("failed")) == (1, 1)


def test_a_rejected_file_is_tried_again_after_a_while(service, other, monkeypatch):
    load = model.load

    def fail_at_first(*arguments, **options):
        monkeypatch.setattr(model, "load", load)
        raise MemoryError

    monkeypatch.setattr(model, "load", fail_at_first)
    monkeypatch.setattr(reload, "_RETRY_SECONDS", 0.05)
    other.replace(service.model.path)
    watch_until(service, lambda: service.model.names[0] == "a")
    assert (service.reloads("succeeded"), service.reloads("failed")) == (1, 1)


def test_a_file_is_tried_again_less_and_less_often_until_another_comes(service, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=1000)
    monkeypatch.setattr(reload, "time", clock)
    file = reload._Watched(service)

    def tries(seconds: int) -> list[int]:
        """Checks each second whether the file is due, and rejects it each time; returns when it was."""
        start, found = clock.now, []
        while clock.now < start + seconds:
            if file.is_due(retry=False):
                found.append(clock.now - start)
                file.note(is_served=False)
            clock.now += 1
        return found

    assert tries(100) == []
    service.model.path.write_bytes(b"no model")
    assert tries(16_000) == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10_980, 14_580]
    service.model.path.write_bytes(b"no model either")
    assert tries(100) == [0, 60]
    describe(service.model.path, "0")
    assert tries(100) == [0, 60]
    assert file.is_due(retry=True)
    file.note(is_served=True)
    service.model = dataclasses.replace(service.model, signature=files.signature_of(service.model.path))
    assert tries(4000) == []


def test_a_served_file_is_not_loaded_again_on_request(service):
    wake = asyncio.Event()
    wake.set()
    watch_until(service, lambda: not wake.is_set(), wake)
    assert (service.reloads("succeeded"), service.reloads("failed")) == (0, 0)


def test_a_rejected_file_that_is_missing_is_not_tried_on_request(service):
    def is_checked():
        if service.reloads("failed") == 1 and service.model.path.exists():
            service.model.path.unlink()
            wake.set()
        return not service.model.path.exists() and not wake.is_set()

    wake = asyncio.Event()
    service.model.path.write_bytes(b"no model")
    watch_until(service, is_checked, wake)
    assert service.reloads("failed") == 1


def describe(path, digest):
    path.with_suffix(".json").write_text(json.dumps({"file": path.name, "sha256": digest}))


def test_a_file_that_is_not_the_described_one_is_rejected_until_its_description_comes(service, other, caplog):
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    describe(service.model.path, service.model.digest)
    other.replace(service.model.path)
    watch_until(service, lambda: service.reloads("failed") == 1)
    assert service.model.names[0] == "red"
    (record,) = caplog.records
    assert f"its sha256 is {digest}, but served.json beside it says" in record.message


def test_a_description_that_comes_after_its_file_is_read(service, other):
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    describe(service.model.path, service.model.digest)
    other.replace(service.model.path)

    def is_replaced():
        if service.reloads("failed") == 1:
            describe(service.model.path, digest)
        return service.model.names[0] == "a"

    watch_until(service, is_replaced)
    assert (service.reloads("succeeded"), service.reloads("failed")) == (1, 1)


def test_a_pinned_file_is_not_replaced_by_another(service, other, caplog):
    service.settings.model["served"] = Source(path=service.model.path, sha256=service.model.digest)
    other.replace(service.model.path)
    watch_until(service, lambda: service.reloads("failed") == 1)
    assert f"but JAXCNN_MODEL says {service.model.digest}" in caplog.text
    assert service.model.names[0] == "red"
