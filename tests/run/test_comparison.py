"""What the comparison of runs finds, and the files that it writes."""

import csv
import dataclasses
import io
import json
import os
import time

import pytest
from log_lines import validation_line
from recorded_runs import write_run

from jaxcnn.errors import UserError
from jaxcnn.run.comparison import compare, find_differences, measure_cost, tabulate
from jaxcnn.run.comparison_files import to_csv, to_html, to_markdown
from jaxcnn.run.metrics_log import read_log
from jaxcnn.run.recorded import find_end, find_runs, is_finished
from jaxcnn.run.workdir import Workdir


@pytest.fixture
def folder(tmp_path):
    """Three runs: the best, one with seven more mistakes and another rate, and one that has not ended."""
    write_run(tmp_path / "runs" / "best", note="the first\nidea")
    write_run(tmp_path / "runs" / "other", answers="d" * 7 + "c" + "d" * 8, learning_rate=0.3)
    write_run(tmp_path / "runs" / "late", answers="c" * 16, finished=False, keep=False, seed=1)
    return tmp_path / "runs"


def test_runs_are_found_in_folders_once_each(folder):
    found = find_runs([folder / "other", folder, folder.parent])
    assert [run.name for run in found] == ["other", "best", "late"]


def test_names_are_as_long_as_they_must_be(tmp_path):
    for name in ("a/digits", "b/digits"):
        write_run(tmp_path / name)
    assert [run.name for run in find_runs([tmp_path])] == ["a/digits", "b/digits"]


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "does not exist"), ("empty", "has no run in it"), ("f", "is not")]
)
def test_a_path_without_a_run_is_refused(tmp_path, name, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match=f"{name} {reason}.*; give workdirs of training runs, or a folder of them"):
        find_runs([tmp_path / name])


def test_only_what_differs_is_a_difference(folder):
    assert find_differences(find_runs([folder])) == {
        "optim.learning_rate": ("0.1", "0.1", "0.3"),
        "seed": ("0", "1", "0"),
        "note": ("the first\nidea", "", ""),
    }


def test_other_data_and_machines_are_differences(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "b" / "environment.json").write_text(
        '{"processor": "Z80", "cores": "1", "devices": "cpu", "jax": "0", "flax": "0", "optax": "0", "python": "0"}'
    )
    (tmp_path / "b" / "classes.json").write_text('{"names": ["a", "b"], "wnids": [], "dataset": "x", "license": ""}')
    found = find_differences(find_runs([tmp_path]))
    assert found["data"] == ("pets, 40 + 16, 2 classes", "x, 40 + 16, 2 classes")
    assert found["machine"][1] == "Z80, 1 core"
    assert found["software"][1] == "jax 0, flax 0, optax 0, Python 0"


def test_the_paired_test_is_on_the_same_pictures(folder):
    comparison = compare(find_runs([folder]))
    assert (comparison.best, comparison.unpaired) == ("best", ("late",))
    (paired,) = comparison.paired
    assert (paired.name, paired.pair.pictures, len(paired.pair.first_only)) == ("other", 16, 7)
    assert paired.p_value == pytest.approx(2 / 2**7)
    assert paired.pair.first_only[0][:2] == ("c/0.png", "cat")


def test_the_table_of_results(folder):
    (results, pairs, cost) = tabulate(compare(find_runs([folder])))
    assert results.columns == (
        "run", "optim.learning_rate", "seed", "note", ">top-1", ">top-5", ">loss", ">calibration error", ">p",
    )  # fmt: skip
    assert results.rows[0] == (
        "best", "0.1", "0", "the first\nidea", "1.0000 [0.806, 1.000]", "1.0000 [0.806, 1.000]", "0.2500", "0.0500",
        "best",
    )  # fmt: skip
    assert results.rows[1][0] == "late (unfinished)"
    assert results.rows[1][4].startswith("0.5000")  # The best epoch in its log.
    assert pairs.rows == (("other", "16", "7", "0", "0.016", "0.016"),)
    assert cost.rows[0][:4] == ("best", "2", "4 s", "20")


def begin_again(folder, **changes):
    """Does what a session of a finished run leaves that begins a minute later with other settings."""
    workdir = Workdir(folder)
    workdir.record(dataclasses.replace(workdir.read_config(), **changes), workdir.read_classes())
    os.utime(folder / "config.json", (later := time.time() + 60, later))


def test_a_run_that_goes_on_after_its_end_is_not_compared_by_its_earlier_evaluation(folder):
    begin_again(folder / "best", epochs=3)
    comparison = compare(find_runs([folder]))
    rows = {row[0]: row for row in tabulate(comparison)[0].rows}
    assert rows["best (unfinished)"][5].startswith("1.0000")  # The best epoch in its log.
    assert rows["best (unfinished)"][7] == "1.0000"  # Its loss, where the evaluation has .25.
    assert set(comparison.unpaired) == {"best", "late"}
    assert comparison.paired == ()


@pytest.mark.parametrize(("epochs", "step"), [(3, 8), (2, 4)])
def test_an_evaluation_before_the_end_is_not_of_the_finished_run(tmp_path, epochs, step):
    # The user has measured a run that was stopped; or a kill came between the last epoch and its evaluation.
    workdir = Workdir(write_run(tmp_path / "run", epochs=epochs))
    workdir.evaluation.write_text(json.dumps(json.loads(workdir.evaluation.read_text()) | {"step": step}))
    (run,) = find_runs([tmp_path])
    assert run.evaluation is None
    assert not is_finished(workdir)


def test_an_evaluation_of_an_earlier_version_or_without_a_log_is_of_the_finished_run(tmp_path):
    workdir = Workdir(write_run(tmp_path / "run"))
    record = json.loads(workdir.evaluation.read_text())
    workdir.evaluation.write_text(json.dumps({name: value for name, value in record.items() if name != "step"}))
    (run,) = find_runs([tmp_path])
    assert run.evaluation is not None
    workdir.metrics.unlink()
    (run,) = find_runs([tmp_path])
    assert run.evaluation is not None


def test_a_run_whose_best_checkpoint_is_damaged_is_finished_with_another(tmp_path):
    workdir = Workdir(write_run(tmp_path / "run"))
    for path in (workdir.evaluation, workdir.onnx.with_suffix(".json")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 4}))
    assert not is_finished(workdir)
    (workdir.checkpoints / "8.damaged").mkdir(parents=True)
    (run,) = find_runs([tmp_path])
    assert run.evaluation is not None
    assert is_finished(workdir)
    # A later session has taken the steps again.
    (workdir.checkpoints / "8").mkdir()
    assert not is_finished(workdir)


def test_a_run_with_only_its_head_trained_is_finished_after_no_epoch(tmp_path):
    workdir = Workdir(write_run(tmp_path, init_from="weights", freeze="backbone", fit_head=True))
    workdir.metrics.write_text(validation_line(0) + "\n")
    assert find_end(workdir.read_config(), read_log(workdir.metrics)) == 0


@pytest.mark.parametrize("changes", [{}, {"epochs": 3, "early_stopping": 1}])
def test_a_copy_of_a_run_that_has_ended_is_finished_though_its_files_are_in_another_order(folder, changes):
    lines = [json.loads(line) | {"top1": 0.5} for line in (folder / "best" / "metrics.jsonl").read_text().splitlines()]
    (folder / "best" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    begin_again(folder / "best", **changes)
    (best,) = find_runs([folder / "best"])
    assert best.evaluation is not None
    assert best.scores["loss"] == 0.25


def test_cost_is_counted_from_the_log(folder):
    cost = measure_cost(find_runs([folder / "best"])[0])
    assert cost["training_flops"] == 3 * 80 * cost["picture_flops"]
    assert cost["seconds"] == 4


def test_runs_that_differ_in_their_seed_alone_are_averaged(tmp_path):
    for seed, answers in enumerate(("c" * 8 + "d" * 8, "c" * 8 + "d" * 7 + "c")):
        write_run(tmp_path / f"low-{seed}", answers=answers, seed=seed)
    write_run(tmp_path / "high", learning_rate=0.3)
    seeds = next(table for table in tabulate(compare(find_runs([tmp_path]))) if "seeds" in table.title)
    assert seeds.columns[:3] == ("optim.learning_rate", ">runs", ">mean")
    assert seeds.rows == (
        ("0.3", "1", "1.0000", "", "1.0000", "1.0000"),
        ("0.1", "2", "0.9688", "0.0442", "0.9375", "1.0000"),
    )


def test_a_single_run_is_a_table(tmp_path):
    write_run(tmp_path / "a")
    titles = [table.title for table in tabulate(compare(find_runs([tmp_path / "a"])))]
    assert titles == ["Results on the validation pictures", "Cost"]
    page = to_html(compare(find_runs([tmp_path / "a"])))
    assert "<title>1 run</title>" in page
    assert "They have the same settings" not in page


def test_runs_that_do_not_differ_are_said_to_be_the_same(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    page = to_html(compare(find_runs([tmp_path])))
    assert "<title>2 runs compared</title>" in page
    assert "They have the same settings, data and machine." in page


def test_damaged_records_are_named(folder):
    (folder / "best" / "evaluation.json").write_text('{"top1": "high"}')
    with pytest.raises(UserError, match=r"best/evaluation.json is not .*; remove it and write it again with: .*/best$"):
        find_runs([folder])
    (folder / "best" / "evaluation.json").unlink()
    (folder / "other" / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"predictions.csv cannot be read as predictions"):
        compare(find_runs([folder]))


def test_csv_has_numbers_that_are_not_rounded(folder):
    rows = list(csv.DictReader(io.StringIO(to_csv(compare(find_runs([folder]))))))
    assert [row["run"] for row in rows] == ["best", "late", "other"]
    assert float(rows[2]["top1"]) == 9 / 16
    assert float(rows[2]["p"]) == 2 / 2**7
    assert rows[0]["note"] == "the first\nidea"


def test_markdown_has_one_line_for_each_run(folder):
    text = to_markdown(compare(find_runs([folder])))
    assert "| best | 0.1 | 0 | the first idea | 1.0000 [0.806, 1.000] |" in text
    assert "| --- | --- | --- | --- | ---: |" in text


def test_untrusted_text_is_escaped(tmp_path):
    write_run(tmp_path / "a", note="<script>alert(1)</script> | \\")
    write_run(tmp_path / "b")
    comparison = compare(find_runs([tmp_path]))
    assert "<script>" not in to_html(comparison)
    assert r"&lt;script>alert(1)&lt;/script> \| \\ " in to_markdown(comparison)


def test_the_page_has_curves_and_pictures_and_needs_no_network(folder):
    page = to_html(compare(find_runs([folder])))
    assert page.count("<svg") == 4
    assert "Only best is right, not other: 7" in page
    assert "<td>c/0.png</td><td>cat</td><td>cat</td><td>dog</td>" in page
    assert "#010a0b" not in page
    assert "//" not in page.replace("http://www.w3.org", "")
