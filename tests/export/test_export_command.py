"""The command line of an export."""

import sys

import pytest

import export
import export.workdir
from export import __main__ as program
from jaxcnn import cli, terminal
from jaxcnn.errors import UserError


@pytest.mark.run
def test_command_exports_to_the_given_path(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 600.0)  # Its stages are announced only if they take long.
    program.main([str(run), "-o", str(tmp_path / "a.onnx")])
    written = capsys.readouterr()
    assert written.err == ""
    assert written.out.startswith(f"{tmp_path / 'a.onnx'}: 0.0 MB, verified")


@pytest.mark.parametrize("arguments", [["no/such/run"], [], [".", "--quantise"]])
def test_command_reports_mistakes_in_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(program.main, program.PROG)
    written = capsys.readouterr()
    assert (stop.value.code, written.out) == (2, "")
    assert len(written.err.splitlines()) == 1
    assert written.err.startswith("python -m export: ")


@pytest.mark.parametrize("output", ["a.onnx", "a.safetensors"])
@pytest.mark.parametrize("option", ["data.source", "data.fit", "data.cache_dir", "tolerance"])
def test_options_for_quantization_are_refused_without_it(run, tmp_path, output, option):
    value = {"data.fit": "pad", "tolerance": ".5"}.get(option, str(tmp_path))
    with pytest.raises(UserError, match=rf"^--{option} has no effect without --quantize int8; leave it out, or quanti"):
        program.main([str(run), "-o", str(tmp_path / output), f"--{option}", value])
    assert not list(tmp_path.iterdir())


def test_command_exits_with_status_1_if_a_model_cannot_be_exported(run, capsys, monkeypatch):
    def refuse(*arguments):
        raise export.UnsupportedError("cannot export the primitive 'sort'")

    monkeypatch.setattr(export.workdir, "to_onnx", refuse)
    with pytest.raises(SystemExit, match="python -m export: cannot export the primitive 'sort'"):
        program.main([str(run)])
