"""What a training does otherwise in a container, whatever number its process has there."""

import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxcnn import container, train, training
from jaxcnn.container import is_container
from jaxcnn.run import shared_workdir
from jaxcnn.run.workdir import Workdir

DOCKERFILE = Path(__file__).parent.parent / "server" / "deploy" / "Dockerfile"


@pytest.fixture(params=["first", "image", "neither"])
def process(request, monkeypatch):
    """What says that the process is in a container."""
    monkeypatch.setattr(os, "getpid", lambda: 1 if request.param == "first" else 7)
    monkeypatch.setenv(container.VARIABLE, "1" if request.param == "image" else "")
    return request.param


def test_a_run_that_was_stopped_is_not_complete_for_the_launcher(process, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "train", lambda *_, **__: None)
    monkeypatch.setattr(train, "keep_freed_memory", lambda: None)
    status = 0
    try:
        train.main(["digits", "--workdir", str(tmp_path)])
    except SystemExit as error:
        status = error.code
    assert status == (0 if process == "neither" else 128 + signal.SIGTERM)
    assert is_container() is (process != "neither")


def test_a_run_waits_for_the_lock_of_a_machine_that_is_lost(process, monkeypatch, tmp_path):
    waited = []

    @contextmanager
    def locked(self, *, seconds):
        waited.append(seconds)
        yield

    monkeypatch.setattr(Workdir, "locked", locked)
    with shared_workdir.locked_by_leader(Workdir(tmp_path)):
        pass
    assert waited == [0.0 if process == "neither" else shared_workdir.LOCKED_SECONDS]


def test_the_image_for_training_says_that_it_is_one():
    stage = re.search(r"^FROM \S+ AS train$.*?^ENTRYPOINT", DOCKERFILE.read_text(), re.MULTILINE | re.DOTALL)[0]
    assert f" {container.VARIABLE}=1\n" in stage
