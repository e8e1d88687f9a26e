"""Signals while the server starts, and workers that cannot start, in real processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from ports import free_port

from tests.server.wire import inherited, wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_download_at_once(start, tmp_path, number):
    cache, log = tmp_path / "cache", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as host:
        process = start(
            log,
            JAXCNN_MODEL=f"gs://bucket/model.onnx#sha256={'0' * 64}",
            JAXCNN_CACHE=str(cache),
            STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{host.getsockname()[1]}",
        )
        try:
            download, _ = host.accept()
            with download:
                # The host stays silent after the first megabyte and a half.
                download.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(1_500_000))
                wait_until(lambda: any(path.stat().st_size for path in cache.rglob(".part-*")))
                process.send_signal(number)
                # A host may be silent for 30 seconds, and is then asked again.
                assert process.wait(timeout=10) == 0
        finally:
            process.kill()
            process.wait()
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert "Asked to end before the models were loaded." in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.run
def test_a_worker_that_cannot_be_replaced_leaves_the_others_alone(model_path, tmp_path):
    """uvicorn ends all of them as soon as one has the exit status of a failed start."""
    model, log, port = tmp_path / "model.onnx", tmp_path / "log", free_port()
    shutil.copy(model_path, model)
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(port), "--workers", "2"]
    settings = {"JAXCNN_MODEL": str(model), "JAXCNN_DRAIN_SECONDS": "0", "JAXCNN_THREADS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env={**inherited(), **settings}, stdout=stream, stderr=stream)
    try:
        wait_until(lambda: log.read_text().count("Application startup complete.") == 2)
        # The new worker finds a damaged file, twice.
        model.write_bytes(b"damaged")
        os.kill(int(re.findall(r"Started server process \[(\d+)\]", log.read_text())[0]), signal.SIGKILL)
        wait_until(lambda: log.read_text().count("cannot replace one that has ended; the next try is in 5 s: ") == 2)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        # A good one ends that.
        shutil.copy(model_path, model)
        wait_until(lambda: log.read_text().count("Application startup complete.") == 3)
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert "failed to start" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_first_workers_stop_the_service_if_they_cannot_start(tmp_path):
    command = [sys.executable, "-m", "uvicorn", "server.app:app", "--port", str(free_port()), "--workers", "2"]
    environment = {**inherited(), "JAXCNN_MODEL": str(tmp_path / "missing.onnx")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert "missing.onnx is not a file: set JAXCNN_MODEL" in done.stderr
    assert "failed to start, stopping the parent process" in done.stderr
