"""Hot reload, with a real model and injected failures."""

import asyncio
import contextlib
import shutil
from types import SimpleNamespace

import pytest

from server import model, reload
from server.metrics import Metrics


class Service:
    """The part of `Service` that `reload.watch` uses."""

    def __init__(self, path):
        self.settings = SimpleNamespace(model=path, max_batch=2, threads=1, reload_seconds=0.01)
        self.metrics = Metrics()
        self.model = model.load(path, max_batch=2, threads=1)

    def serve(self, new):
        self.model = new

    def reloads(self, result):
        return self.metrics.reloads.labels(result)._value.get()


@pytest.fixture
def service(model_path, tmp_path):
    path = tmp_path / "served.onnx"
    shutil.copy(model_path, path)
    return Service(path)


@pytest.fixture
def other(model_builder, tmp_path):
    return model_builder(tmp_path / "other.onnx", metadata={"names": ["a", "b", "c", "d", "e"]})


def watch_until(service, condition) -> None:
    async def main():
        watcher = asyncio.create_task(reload.watch(service))
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
    other.replace(service.settings.model)
    watch_until(service, lambda: service.model.names[0] == "a")
    assert (service.reloads("succeeded"), service.reloads("failed")) == (1, 0)


def test_a_file_that_is_missing_for_a_while_is_not_a_failure(service, other):
    service.settings.model.unlink()
    watch_until(service, lambda: True)
    assert (service.reloads("succeeded"), service.reloads("failed")) == (0, 0)
    other.replace(service.settings.model)
    watch_until(service, lambda: service.model.names[0] == "a")


def test_a_file_replaced_just_before_it_is_loaded_is_loaded_once(service, other, monkeypatch):
    load = model.load

    def replace_and_load(path, **options):
        if other.exists():
            other.replace(path)
        return load(path, **options)

    monkeypatch.setattr(model, "load", replace_and_load)
    service.settings.model.touch()
    watch_until(service, lambda: service.model.names[0] == "a")
    assert service.reloads("succeeded") == 1


def test_an_invalid_file_is_logged_in_one_line(service, caplog):
    service.settings.model.write_bytes(b"no model")
    watch_until(service, lambda: service.reloads("failed") > 0)
    (record,) = caplog.records
    assert "onnxruntime cannot open it" in record.message
    assert not record.exc_info


@pytest.mark.parametrize("failure", [MemoryError(), OSError(24, "Too many open files"), RuntimeError("a defect")])
def test_any_failure_is_logged_and_the_next_file_is_tried(service, other, monkeypatch, caplog, failure):
    load = model.load

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(model, "load", fail)
    service.settings.model.touch()
    watch_until(service, lambda: service.reloads("failed") > 0)
    (record,) = caplog.records
    assert "still serving the old one" in record.message
    assert record.exc_info[1] is failure
    assert service.reloads("failed") == 1

    monkeypatch.setattr(model, "load", load)
    other.replace(service.settings.model)
    watch_until(service, lambda: service.model.names[0] == "a")
