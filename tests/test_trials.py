"""The search of a sweep in real Optuna: ranges, what a kill leaves, and a whole sweep. See `clients.py`."""

import json
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from clients import ROOT, environment, run_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROPOSALS = """
import json, sys
from pathlib import Path
from jaxcnn.config import Config
from jaxcnn.trials import Range, Study
space = {"rate": Range(.001, 1, whole=False, log=True), "size": Range(8, 64, whole=True, log=False),
         "sides": (("0", "8"), ("0", "16"))}
study = Study(Path(sys.argv[1]), space, config=Config(), seeds=1)
for trials in study.propose(total=int(sys.argv[2]), at_once=2):
    for trial in trials:
        print(json.dumps([trial.number, trial.values]))
        if sys.argv[3] == "score":
            study.record(trial, 1 - abs(float(trial.values["rate"][0]) - .03))
print(json.dumps([trial.score for trial in study.trials]))
"""


def propose(clients, path, total, mode="score"):
    *lines, scores = run_in(clients, ["-c", PROPOSALS, str(path), str(total), mode]).stdout.splitlines()
    return [json.loads(line) for line in lines], json.loads(scores)


def test_a_study_goes_on_in_the_next_process(clients, tmp_path):
    path = tmp_path / "a folder, 50%" / "trials.db"
    first, scores = propose(clients, path, 4)
    assert [number for number, _ in first] == [0, 1, 2, 3]
    for _, values in first:
        assert 0.001 <= float(values["rate"][0]) <= 1
        assert 8 <= int(values["size"][0]) <= 64
        assert values["sides"] in (["0", "8"], ["0", "16"])
    second, _ = propose(clients, path, 7, "leave")
    assert [number for number, _ in second] == [4, 5, 6]
    assert not {values["rate"][0] for _, values in first} & {values["rate"][0] for _, values in second}
    # What a killed sweep has left is proposed again, with the same values.
    third, all_scores = propose(clients, path, 7)
    assert third == second
    assert all_scores[:4] == scores
    assert None not in all_scores
    assert propose(clients, path, 7) == ([], all_scores)


def test_other_values_to_choose_from_are_refused(clients, tmp_path):
    sweep = ["-m", "jaxcnn.sweep", "--trials", "1", "--workdir", str(tmp_path / "sweep"), "--epochs", "1"]
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table a (b)")
    propose(clients, tmp_path / "sweep" / "trials.db", 1)
    done = run_in(clients, [*sweep, "--over", "batch_size=8..16"], status=2)
    assert "were begun with other values to choose from; give the same --over, or another" in done.stderr
    (tmp_path / "sweep" / "trials.db").write_text("no database")
    done = run_in(clients, [*sweep, "--over", "batch_size=8..16"], status=2)
    assert "trials.db cannot be used as a study" in done.stderr.splitlines()[-1]


def test_other_settings_and_seeds_are_refused(clients, tmp_path):
    # No run needs to end: pictures that do not exist fail every trial.
    sweep = ["-m", "jaxcnn.sweep", "folder", "--trials", "1", "--workdir", str(tmp_path), "--over", "batch_size=8..16"]
    sweep += ["--data.source", str(tmp_path / "missing")]
    run_in(clients, sweep, status=1)
    for options, message in {
        "--epochs 1": "were begun with epochs 40, not 1; give the same value, or another --workdir",
        "--data.source other": f"were begun with data.source '{tmp_path}/missing', not '{ROOT}/other'; give the same",
        "--seeds 2": "were begun with seeds 1, not 2; give the same value, or another --workdir",
    }.items():
        done = run_in(clients, [*sweep, *options.split()], status=2)
        assert message in done.stderr
    run_in(clients, [*sweep, "--data.cache_dir", "c"], status=1)


def test_a_killed_search_goes_on_and_ends_in_a_comparison(clients, tmp_path):
    options = "--model.widths 4 --model.blocks 0 --data.image_size 8 --epochs 2 --trials 3".split()
    folder = tmp_path / "sweep"
    command = ["-m", "jaxcnn.sweep", "digits", "--over", "optim.learning_rate=log:.01..1", *options]
    command += ["--workdir", str(folder), "--data.cache_dir", str(tmp_path / "cache")]
    with subprocess.Popen([clients, *command], cwd=Path(__file__).parent.parent) as process:
        while len(list(folder.glob("*/config.json"))) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    begun = {path.parent.name for path in folder.glob("*/config.json")}
    done = run_in(clients, command)
    runs = {path.parent.name for path in folder.glob("learning_rate=*/model.onnx")}
    assert len(runs) == 3
    assert begun <= runs
    assert "best of 3 trials: --optim.learning_rate " in done.stderr
    assert (folder / "comparison.html").exists()
    again = run_in(clients, command)
    assert "started" not in again.stderr


FULL = f"""
import resource, sys
from pathlib import Path
size = Path(sys.argv[1]).stat().st_size if Path(sys.argv[1]).exists() else 0
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv.pop()),) * 2)
{PROPOSALS}
"""


def test_a_full_disk_is_one_line_and_the_study_goes_on(clients, tmp_path):
    """At every size that the file would grow to: while it is created, a trial is proposed, or a score recorded."""
    path, failed = tmp_path / "trials.db", 0
    program = f"from jaxcnn import cli\ncli.run(lambda _: exec({FULL!r}, {{}}), 'sweep')"
    for room in range(0, 300_000, 20_000):
        path.unlink(missing_ok=True)
        done = subprocess.run(
            [clients, "-c", program, str(path), "2", "score", str(room)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            failed += 1
            assert done.stderr.startswith(f"sweep: {path} cannot be used as a study (")
            assert done.stderr.endswith(" and run the same command again\n")
            assert done.stderr.count("\n") == 1
        _, scores = propose(clients, path, 3)
        assert len([score for score in scores if score is not None]) == 3
    assert failed >= 3
