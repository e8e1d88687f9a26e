"""The command `jaxcnn serve`: which model it serves, and a port in use."""

import errno
import os
import socket

import pytest
from ports import free_port

from jaxcnn import serve
from jaxcnn.errors import UserError


@pytest.fixture
def started(monkeypatch):
    """The command lines that uvicorn is started with, which it is not."""
    lines = []
    monkeypatch.setattr(serve.uvicorn.main, "main", lambda line, prog_name: lines.append(line))
    monkeypatch.setenv("JAXCNN_MODEL", "before.onnx")
    for name in ("HOST", "PORT", "UDS", "FD"):
        monkeypatch.delenv(f"UVICORN_{name}", raising=False)
    return lines


def test_options_go_to_uvicorn_and_the_model_to_the_server(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.onnx").touch()
    port = str(free_port())
    serve.main(["my.onnx", "--port", port, "--log-level", "warning"])
    assert started == [["server.app:app", "--port", port, "--log-level", "warning"]]
    assert os.environ["JAXCNN_MODEL"] == "my.onnx"
    (tmp_path / "model.onnx").touch()
    serve.main([str(tmp_path), "--port", port])
    assert os.environ["JAXCNN_MODEL"] == str(tmp_path / "model.onnx")


def test_a_folder_of_models_goes_to_the_server(started, tmp_path):
    for name in ("cats.onnx", "dogs.onnx"):
        (tmp_path / name).touch()
    serve.main([str(tmp_path), "--port", str(free_port())])
    assert os.environ["JAXCNN_MODEL"] == str(tmp_path)


def test_without_a_model_the_variable_decides(started):
    serve.main(["--port", str(free_port())])
    assert os.environ["JAXCNN_MODEL"] == "before.onnx"


def test_a_workdir_without_a_model_is_refused(started, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path} has no model.onnx; write one with: python -m export {tmp_path}"):
        serve.main([str(tmp_path)])
    assert started == []


def test_a_model_that_is_missing_is_refused(started, tmp_path):
    with pytest.raises(UserError, match=rf"^there is no {tmp_path}/none; give the workdir of a run"):
        serve.main([f"{tmp_path}/none"])
    assert started == []


@pytest.mark.parametrize("model", ["https://host/model.onnx#sha256=0", "cats=a.onnx", "a.onnx,b.onnx"])
def test_several_models_and_urls_are_up_to_the_server(started, model):
    serve.main([model, "--port", str(free_port())])
    assert os.environ["JAXCNN_MODEL"] == model


@pytest.mark.parametrize("port", ["65536", "99999"])
def test_a_port_that_does_not_exist_is_refused(started, port):
    with pytest.raises(UserError, match=rf"^there is no port {port}; give a --port up to 65535$"):
        serve.main(["--port", port])
    assert started == []


@pytest.mark.parametrize("option", ["--port {}", "--port={}", "--host 127.0.0.1 --port {}", ""])
def test_a_port_in_use_is_refused(started, monkeypatch, option):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setenv("UVICORN_PORT", port)
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use; stop .* or give another --port"):
            serve.main(option.format(port).split())
        assert started == []


@pytest.mark.parametrize("elsewhere", ["UVICORN_HOST=127.0.0.2", "UVICORN_UDS=socket", "UVICORN_FD=3"])
def test_a_port_that_is_not_opened_may_be_in_use(started, monkeypatch, elsewhere):
    name, _, value = elsewhere.partition("=")
    monkeypatch.setenv(name, value)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        options = ["--port", str(other.getsockname()[1])]
        serve.main(options)
    assert started == [["server.app:app", *options]]


def test_a_port_that_the_user_may_not_open_is_refused(started, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match=r"^port 80 may not be opened by this user; give a --port from 1024 on$"):
        serve.main(["--port", "80"])
    assert started == []


def test_help_says_what_it_serves(started, capsys):
    serve.main(["--help"])
    printed = capsys.readouterr().out
    assert "MODEL is an .onnx file" in printed
    # uvicorn's own usage asks for one.
    assert "APP is given already" in printed
    assert started == [["server.app:app", "--help"]]
