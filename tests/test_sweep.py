"""The sweep: which runs it starts, which it leaves out, and how it ends. Trainings are played by a short program."""

import contextlib
import dataclasses
import errno
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from recorded_runs import CLASSES, write_run

from jaxcnn import sweep
from jaxcnn.errors import UserError
from jaxcnn.extras import install_command
from jaxcnn.rate_search import RateSearch
from jaxcnn.run import pool
from jaxcnn.run.pool import Job, run_jobs
from jaxcnn.run.workdir import Workdir
from jaxcnn.sweep import list_jobs, main, parse
from jaxcnn.train import parse as parse_training
from jaxcnn.trials import Range, Trial, database_errors

ROOT = Path(__file__).parent.parent
LINE = "digits --over optim.learning_rate=.003,.01 resolutions=0\u00a08,0\u00a016 --seeds 2 --epochs 3"


def words(line):
    """Splits a command line at its spaces; a non-breaking space stays in a word as a space."""
    return [word.replace("\u00a0", " ") for word in line.split(" ")]


def list_jobs_of(line):
    found = parse(line)
    return list_jobs(found, found.over)


def test_every_combination_is_a_job(tmp_path):
    jobs = list_jobs_of([*words(LINE), "--workdir", str(tmp_path)])
    assert len(jobs) == 8
    assert len({job.workdir for job in jobs}) == 8
    assert jobs[-1].workdir == tmp_path / "learning_rate=.01,resolutions=0 16,seed=1"
    assert jobs[-1].arguments == (
        "digits", "--epochs", "3", "--optim.learning_rate", ".01", "--resolutions", "0", "16", "--seed", "1",
        "--workdir", str(jobs[-1].workdir),
    )  # fmt: skip


def test_switches_are_on_or_off(tmp_path):
    line = "folder --over balance=on,off model.cpu-kernels=off --seeds 1 --workdir"
    first, second = list_jobs_of([*line.split(), str(tmp_path)])
    assert first.arguments[1:3] == ("--balance", "--model.no_cpu_kernels")
    assert second.arguments[1:3] == ("--no_balance", "--model.no_cpu_kernels")
    assert second.workdir.name == "balance=off,cpu_kernels=off"
    for job, is_balanced in ((first, True), (second, False)):
        config = parse_training(job.arguments).config
        assert (config.balance, config.model.cpu_kernels) == (is_balanced, False)


def test_equal_runs_are_one(tmp_path, played):
    (job,) = list_jobs_of(["--over", "seed=0,0", "--workdir", str(tmp_path)])
    assert job.workdir.name == "seed=0"
    # Trials may be drawn twice.
    twice = jobs_in(tmp_path, "a", "b") + jobs_in(tmp_path, "a")
    assert run_jobs(twice, at_once=3) == {}
    assert {name: (tmp_path / name / "begun").read_text().count("\n") for name in "ab"} == {"a": 1, "b": 1}


def test_other_runs_do_not_share_a_folder():
    with pytest.raises(UserError, match=r"^two runs would share the folder runs/sweep-digits/init_from=a_b; train"):
        list_jobs_of(["--over", "init_from=a/b,a_b"])


def test_a_workdir_has_no_characters_that_mean_something_in_paths(tmp_path):
    (job,) = list_jobs_of(["--over", "init_from=a/b*", "--workdir", str(tmp_path)])
    assert job.workdir.relative_to(tmp_path).as_posix() == "init_from=a_b_"


def test_defaults():
    found = parse(["folder", "--over=epochs=1,2"])
    assert (found.training, found.jobs, found.seeds) == (("folder",), 1, 1)
    assert found.workdir.as_posix() == "runs/sweep-folder"
    assert found.output.as_posix() == "runs/sweep-folder/comparison.html"


def test_a_range_test_takes_the_options_of_training(tmp_path):
    line = "folder --find-learning-rate 20 --epochs 3 --workdir"
    assert parse([*line.split(), str(tmp_path)]) == RateSearch(("folder", "--epochs", "3"), tmp_path, steps=20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("digits", "there is nothing to sweep over; give --over NAME=VALUE,VALUE or --seeds; see"),
        ("--over epochs", "over is 'epochs'; give an option and its values, such as optim.learning_rate=.003,.01"),
        ("--over epochs=1,", "over is 'epochs=1,'; give an option"),
        ("--over epochs=1 epochs=2", "over names epochs twice; give it once"),
        ("--over seed=1,2 --seeds 2", "over names seed and --seeds is given too; leave one of them out"),
        ("--seeds three", "seeds is 'three'; it must be a whole number of at least 1"),
        ("--seeds 2 --jobs 0", "jobs is '0'; it must be a whole number of at least 1"),
        ("--seeds 2 --output x.pdf", "output is 'x.pdf'; it must end with .html, .md or .csv"),
        ("--seeds 2 --output LICENSE/a/x.md", "output 'LICENSE/a/x.md' cannot be written: "),
        ("--find_learning_rate 20 --workdir LICENSE/a", "workdir 'LICENSE/a/learning_rates.html' cannot be written: "),
        ("--over", "--over: expected at least one argument; see python -m jaxcnn.sweep --help"),
        ("--find_learning_rate 9", "find_learning_rate is '9'; it must be a whole number of at least 10"),
        *[
            (
                f"--find_learning_rate 20 {option}",
                "find_learning_rate trains no runs; leave out --" + option[2:].split()[0],
            )
            for option in ("--over epochs=1,2", "--seeds 1", "--trials 2", "--jobs 1", "--output a.html")
        ],
        ("--over epochs=1,five", "epochs is 'five'; it must be a whole number"),
        ("--over epochs=1..5", "over has the range epochs=1..5; give --trials N, or values with commas"),
        ("--trials 5", "trials needs something to choose from; give --over NAME=VALUES, too"),
        ("--trials 0 --over epochs=1,2", "trials is '0'; it must be a whole number of at least 1"),
        ("--trials 5 --over epochs=5..1", "over has the range epochs=5..1, which must rise"),
        ("--trials 5 --over epochs=.5..3", "over has the range epochs=.5..3, which must have whole ends"),
        (
            "--trials 5 --over optim.momentum=log:0..1",
            "momentum=log:0..1, which must be above 0, since it is logarithmic",
        ),
        ("--trials 5 --over optim.momentum=log:.1", "optim.momentum is 'log:.1'; it must be a number"),
        ("--trials 5 --over optim.momentum=.5..2", "optim.momentum is 2.0; it must be from 0 to below 1"),
        ("--seeds 2 --log.mlflow x", "log.mlflow needs the package mlflow, which is not installed; run: pip install"),
        ("--over workdir=a,b", "over names workdir, which is no setting of a run; leave it out"),
        ("--seeds 2 --dry-run", "a sweep trains its runs; leave out --dry_run"),
        ("--over balance=on,yes", "over has balance=yes; balance is a switch: give on or off"),
        ("--over epoch=1,2", "there is no option --epoch; there are: "),
        ("lions --seeds 2", "there is no preset 'lions'"),
    ],
)
def test_a_wrong_command_line_is_refused_before_any_run(monkeypatch, line, message):
    monkeypatch.setattr(sweep, "run_jobs", lambda *_, **__: pytest.fail("a run was started"))
    monkeypatch.setattr(sweep, "check_optuna", lambda: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main(line.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [["--seeds", "2"], ["--find_learning_rate", "20"]])
def test_a_folder_among_the_pictures_is_refused_and_not_made(tmp_path, options):
    with pytest.raises(UserError, match=r"workdir .*/sweep' lies in data\.source .*, among the pictures; give another"):
        main(["folder", "--data.source", str(tmp_path), "--workdir", str(tmp_path / "sweep"), *options])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_checkpoints_could_not_be_read_is_refused_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_jobs", lambda *_, **__: pytest.fail("a run was started"))
    with pytest.raises(UserError, match=r"the path of the workdir, .*/rates\[1\], has a \[ in it, with which"):
        main(["--seeds", "2", "--workdir", str(tmp_path / "rates[1]")])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def played(monkeypatch, tmp_path_factory):
    """Lets a program play the trainings: it writes the records of a finished run, unless it is the one to fail.

    Before, it sleeps, and waits until a number of trainings have begun.
    """
    run = write_run(tmp_path_factory.mktemp("played") / "run")
    program = (
        "import os, pathlib, shutil, sys, time\nfolder = pathlib.Path(sys.argv[-1])\nfolder.mkdir(exist_ok=True)\n"
        "(folder / 'begun').open('a').write(f'{os.getpgid(0)}\\n')\ntime.sleep(float(sys.argv[1]))\n"
        "deadline = time.monotonic() + 20\n"
        "while len([*folder.parent.glob('*/begun')]) < int(sys.argv[2]):\n"
        "    if time.monotonic() > deadline: sys.exit('alone')\n"
        "    time.sleep(0.02)\n"
        "if 'fail' in folder.name: sys.exit('no luck')\n"
        f"shutil.copytree({str(run)!r}, folder, dirs_exist_ok=True)\n"
    )
    begin = subprocess.Popen

    def popen(command, **options):
        return begin([sys.executable, "-c", program, *command[3:]], **options)

    # Only there: the records of a run have the commit, for which git is started.
    monkeypatch.setattr(pool, "subprocess", SimpleNamespace(**(vars(subprocess) | {"Popen": popen})))
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.02)


def jobs_in(folder, *names, seconds=0, together=1):
    return [Job(folder / name, (str(seconds), str(together), str(folder / name))) for name in names]


def test_finished_runs_are_not_run_again(tmp_path, played, capsys):
    write_run(tmp_path / "a")
    assert run_jobs(jobs_in(tmp_path, "a", "b"), at_once=1) == {}
    assert not (tmp_path / "a" / "begun").exists()
    assert (tmp_path / "b" / "model.onnx").exists()
    assert "1 of 2 runs are finished" in capsys.readouterr().err


def test_a_run_that_goes_on_after_its_end_or_was_only_exported_is_not_finished(tmp_path):
    (job,) = jobs_in(tmp_path, "a")
    assert not job.is_finished
    write_run(job.workdir)
    assert job.is_finished
    # A session with more epochs has begun since.
    write_run(job.workdir, epochs=3)
    assert not job.is_finished
    write_run(job.workdir)
    (job.workdir / "evaluation.json").unlink()
    assert not job.is_finished


def test_a_copy_of_a_finished_run_is_finished_whatever_the_times_of_its_files(tmp_path):
    (job,) = jobs_in(tmp_path, "a")
    write_run(job.workdir)
    os.utime(job.workdir / "config.json", (later := time.time() + 60, later))
    assert job.is_finished


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json", "model.json"])
@pytest.mark.parametrize("text", ["", "[]", "\udc80", '{"step": 4}'])
def test_a_run_with_a_damaged_record_is_not_finished(tmp_path, name, text):
    (job,) = jobs_in(tmp_path, "a")
    write_run(job.workdir)
    (job.workdir / name).write_text(text, errors="surrogateescape")
    assert not job.is_finished


@pytest.mark.run
def test_finished_runs_with_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    started = []

    def play(jobs, *, at_once):
        started.extend(job for job in jobs if not job.is_finished)
        for job in started:
            config = parse_training(job.arguments).config
            write_run(job.workdir)
            Workdir(job.workdir).record(dataclasses.replace(config, data=config.data.resolved()), CLASSES)
        return {}

    monkeypatch.setattr(sweep, "run_jobs", play)
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    line = ["folder", *words("--over optim.learning_rate=.03,.1 --data.source a --workdir runs --epochs 2")]
    main(line)
    assert len(started) == 2
    changes = {
        "--epochs 50": "holds a finished run with epochs 2, not 50",
        "--data.source b": f"holds a finished run with data.source '{tmp_path}/a', not '{tmp_path}/b'",
        "--data.fit pad": "holds a finished run with data.fit 'stretch', not 'pad'",
    }
    for options, message in changes.items():
        with pytest.raises(UserError) as caught:
            main([*line, *options.split()])
        assert str(caught.value) == f"runs/learning_rate=.03 {message}; give the same value, or another --workdir"
    # The same pictures by another path, and what has no effect.
    main([*line, "--data.source", str(tmp_path / "a"), "--data.cache_dir", "c", "--parallel.fsdp", "2"])
    assert len(started) == 2
    # An unfinished run may go on as `train` allows.
    for job in started:
        (job.workdir / "model.onnx").unlink()
    main([*line, "--epochs", "50"])
    assert len(started) == 4


def test_a_failed_run_does_not_end_the_others(tmp_path, played):
    jobs = jobs_in(tmp_path, "a", "fail", "c")
    assert run_jobs(jobs, at_once=1) == {jobs[1]: "no luck"}
    assert jobs[2].is_finished


def test_jobs_run_side_by_side(tmp_path, played):
    assert run_jobs(jobs_in(tmp_path, "a", "b", "c", "d", together=4), at_once=4) == {}


def test_an_interrupt_stops_what_runs(tmp_path, played, monkeypatch):
    begun = tmp_path / "a" / "begun"

    def interrupt(_):
        if begun.exists() and begun.read_text():
            raise KeyboardInterrupt
        time_sleep(0.02)

    time_sleep = time.sleep
    monkeypatch.setattr(pool.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs_in(tmp_path, "a", "b", seconds=60), at_once=1)
    with pytest.raises(ProcessLookupError):
        os.killpg(int(begun.read_text()), 0)
    assert not (tmp_path / "a" / "model.onnx").exists()
    assert not (tmp_path / "b").exists()


def test_ctrl_c_in_a_terminal_reaches_the_sweep_alone(tmp_path, played):
    """Else a training would get two signals, and end without saving its state."""
    run_jobs(jobs_in(tmp_path, "a"), at_once=1)
    assert int((tmp_path / "a" / "begun").read_text()) != os.getpgid(0)


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    line = ["--seeds", "2", "--workdir", str(tmp_path / "sweep")]

    def start_again(jobs, *, at_once):
        monkeypatch.setattr(sweep, "run_jobs", lambda *_, **__: pytest.fail("a run was started"))
        with pytest.raises(UserError, match=r"another sweep is running in .*/sweep; wait for it, or give another"):
            main(line)
        return {}

    monkeypatch.setattr(sweep, "run_jobs", start_again)
    main(line)


def test_a_sweep_removes_nothing_from_its_folder(tmp_path, monkeypatch):
    # Names that a refused training would remove, and the lock of one that runs beside it.
    names = {"checkpoints", "metrics.jsonl", "environment.json", "classes.json", ".lock"}

    def leave(jobs, *, at_once):
        for name in names:
            (tmp_path / "sweep" / name).touch()
        return {jobs[0]: "no luck"}

    monkeypatch.setattr(sweep, "run_jobs", leave)
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        main(["--seeds", "2", "--workdir", str(tmp_path / "sweep")])
    assert names <= {path.name for path in (tmp_path / "sweep").iterdir()}


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
@pytest.mark.skipif(not hasattr(FileLock, "fallback_to_soft"), reason="earlier versions of filelock refuse such drives")
def test_on_a_drive_without_locks_a_killed_sweep_can_be_given_up(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", fail)
    (tmp_path / sweep.LOCK).write_text("7\nanother-machine\n")
    with pytest.raises(UserError, match=r"wait for it, or remove .*/\.sweep\.lock if it was killed, or give another"):
        sweep.locked(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^the folder of the sweep, .*/file/a, cannot be written or locked: Not a dir"):
        sweep.locked(tmp_path / "file" / "a").__enter__()


def test_it_ends_in_a_comparison(tmp_path, monkeypatch, capsys):
    def play(jobs, *, at_once):
        for seed, job in enumerate(jobs):
            write_run(job.workdir, seed=seed)
        return {jobs[-1]: "no luck"}

    monkeypatch.setattr(sweep, "run_jobs", play)
    with pytest.raises(SystemExit, match="1 of 2 runs failed; run the same command again"):
        main(["--seeds", "2", "--workdir", str(tmp_path)])
    said = capsys.readouterr()
    assert "Top-1 accuracy over seeds" in said.out
    assert f"seed=1: no luck; {tmp_path}/seed=1.log has all that it printed" in said.err.replace("\n", " ")
    assert (tmp_path / "comparison.html").exists()


def test_optuna_is_asked_for_before_any_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    command = re.escape(install_command("optuna"))
    with pytest.raises(UserError, match=f"^trials needs the package optuna, which is not installed; run: {command}$"):
        main(["--trials", "2", "--over", "epochs=1,2"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("optim.learning_rate=log:.001..1", Range(0.001, 1.0, whole=False, log=True)),
        ("optim.learning_rate=1e-3..1.5E+0", Range(0.001, 1.5, whole=False, log=False)),
        ("batch_size=8..64", Range(8.0, 64.0, whole=True, log=False)),
        ("early_stopping=1..5", Range(1.0, 5.0, whole=True, log=False)),
        ("init_from=../a,../b", (("../a",), ("../b",))),
    ],
)
def test_what_a_range_is(text, found):
    assert list(parse(["--trials", "3", "--over", text]).over.values()) == [found]


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        ("PRAGMA max_page_count = 1", "(database or disk is full); make room and run the same command again"),
        (
            "PRAGMA query_only = 1",
            "(attempt to write a readonly database); allow this user to read and write there and",
        ),
        ("SELECT * FROM trials", "(no such table: trials); give another --workdir"),
    ],
)
def test_a_database_that_fails_is_one_line(tmp_path, statements, reason):
    path = tmp_path / "trials.db"
    with contextlib.closing(sqlite3.connect(path)) as database:

        def write():
            try:
                database.executescript(f"CREATE TABLE studies (name); {statements}; CREATE TABLE trials (score)")
            except sqlite3.Error as error:
                raise RuntimeError("An exception is raised during the commit.") from error

        message = re.escape(f"{path} cannot be used as a study {reason}")
        with pytest.raises(UserError, match=f"^{message}"), database_errors(path):
            write()
    with pytest.raises(KeyError), database_errors(path):  # A defect.
        raise KeyError


class PlayedStudy:
    """Proposes what it is made with, and keeps the scores."""

    def __init__(self, values):
        self.trials = [
            Trial(number, {"epochs": (value,), "balance": ("off",)}, None) for number, value in enumerate(values)
        ]

    def propose(self, *, total, at_once):
        for start in range(0, total, at_once):
            yield self.trials[start : start + at_once]

    def record(self, trial, score):
        self.trials[trial.number] = trial._replace(score=score)


def test_trials_are_scored_by_the_mean_of_their_seeds_and_compared(tmp_path, monkeypatch, capsys):
    study, started = PlayedStudy(["1", "2", "3"]), []

    def play(jobs, *, at_once):
        started.append([job.workdir.name for job in jobs])
        for job in jobs:
            if "epochs=3," not in job.workdir.name:
                right = 16 if job.workdir.name == "epochs=1,balance=off,seed=1" else 8
                write_run(job.workdir, answers="c" * 8 + "d" * (right - 8) + "c" * (16 - right))
        return {job: "no luck" for job in jobs if not job.is_finished}

    monkeypatch.setattr(sweep, "run_jobs", play)
    monkeypatch.setattr(sweep, "check_optuna", lambda: None)
    monkeypatch.setattr(sweep, "Study", lambda *_, **__: study)
    line = "--trials 3 --over epochs=1..3 balance=on,off --seeds 2 --jobs 2 --workdir"
    with pytest.raises(SystemExit, match="2 of 6 runs failed; run the same command again"):
        main([*line.split(), str(tmp_path)])
    assert started == [
        [f"epochs={epochs},balance=off,seed={seed}" for epochs in (1, 2) for seed in (0, 1)],
        [f"epochs=3,balance=off,seed={seed}" for seed in (0, 1)],
    ]
    assert [trial.score for trial in study.trials] == [0.75, 0.5, None]
    said = capsys.readouterr()
    assert "best of 2 trials: --epochs 1 --no_balance, with a top-1 of 0.7500" in said.err
    assert (tmp_path / "comparison.html").exists()


def test_a_run_that_failed_and_is_proposed_again_has_not_failed(tmp_path, monkeypatch):
    outcomes = iter(["no luck", None])

    def play(jobs, *, at_once):
        if reason := next(outcomes):
            return dict.fromkeys(jobs, reason)
        for job in jobs:
            write_run(job.workdir)
        return {}

    monkeypatch.setattr(sweep, "run_jobs", play)
    monkeypatch.setattr(sweep, "check_optuna", lambda: None)
    monkeypatch.setattr(sweep, "Study", lambda *_, **__: PlayedStudy(["1", "1"]))
    options = ["--workdir", str(tmp_path), "--output", str(tmp_path / "new" / "runs.csv")]
    main(["--trials", "2", "--over", "epochs=1,2", "balance=on,off", *options])
    assert (tmp_path / "new" / "runs.csv").exists()


@pytest.mark.run
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    options = "--model.widths 4 --model.blocks 0 --data.image_size 8 --epochs 2".split()
    command = [sys.executable, "-m", "jaxcnn.sweep", "digits", "--seeds", "2", *options]
    command += ["--workdir", str(tmp_path / "sweep"), "--data.cache_dir", str(tmp_path / "cache")]
    first, second = (tmp_path / "sweep" / f"seed={seed}" for seed in range(2))
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not (second / "config.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    before = (first / "model.onnx").stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are finished" in done.stderr
    assert "Top-1 accuracy over seeds" in done.stdout
    assert (first / "model.onnx").stat().st_mtime_ns == before
    assert (tmp_path / "sweep" / "comparison.html").exists()
