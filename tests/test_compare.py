"""The command that compares runs."""

from dataclasses import replace

import pytest
from recorded_runs import CONFIG, write_run

from jaxcnn.compare import ENDINGS, main
from jaxcnn.errors import UserError
from jaxcnn.run.comparison_files import WRITERS


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "best")
    write_run(tmp_path / "other[red]", answers="d" * 12 + "c" * 4, learning_rate=0.3)
    return tmp_path


def test_tables_and_pictures_are_printed(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    main([str(runs)])
    said = capsys.readouterr().out
    assert "optim.learning_rate" in said
    assert "other[red]" in said
    assert "12 pictures on which only one of best and other[red] is right" in said
    assert "2 more are on the page that --output NAME.html writes" in said


def test_runs_without_predictions_are_named(runs, capsys):
    (runs / "best" / "predictions.csv").unlink()
    main([str(runs)])
    assert "no test on the same pictures for best: without predictions" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("name", "start"), [("x.html", "<!DOCTYPE html>"), ("x.csv", "run,"), ("x.md", "**Results")])
def test_a_file_is_written(runs, tmp_path, capsys, name, start):
    main([str(runs / "best"), str(runs / "other[red]"), "--output", str(tmp_path / "new" / name)])
    assert (tmp_path / "new" / name).read_text().startswith(start)
    assert f"written to {tmp_path / 'new' / name}" in "".join(capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("ending", ENDINGS)
def test_paths_that_are_not_utf8_are_written(tmp_path, ending):
    sources = ("cats", "caf\udce9s")
    runs = [write_run(tmp_path / str(i), data=replace(CONFIG.data, source=name)) for i, name in enumerate(sources)]
    main([*map(str, runs), "--output", str(tmp_path / f"x{ending}")])
    assert "caf?s" in (tmp_path / f"x{ending}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give workdirs of training runs, or a folder of them, such as: python -m jaxcnn.compare runs"),
        (["nowhere"], "nowhere does not exist; give workdirs"),
        (["x", "--output", "x.pdf"], r"output is 'x.pdf'; it must end with .html, .md or .csv"),
        (["x", "--out", "x.md"], "there is no option --out; there are: --output"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_there_is_a_writer_for_every_ending():
    assert tuple(WRITERS) == ENDINGS
