"""The command line: presets and options in, one-line errors out."""

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxcnn import cli, config, presets
from jaxcnn.errors import UserError
from jaxcnn.terminal import console
from jaxcnn.train import main, parse

ROOT = Path(__file__).parent.parent


def test_no_preset_is_digits():
    parsed = parse([])
    assert parsed.config == presets.digits()
    assert parsed.workdir == Path("runs/digits")


def test_other_pictures_without_a_preset_are_for_the_preset_folder(tmp_path):
    """The preset of the digits would ignore the validation pictures that a folder may have."""
    parsed = parse(["--data.source=pictures", "--epochs", "3"])
    folder = presets.folder()
    assert parsed.config == dataclasses.replace(
        folder, data=dataclasses.replace(folder.data, source="pictures"), epochs=3
    )
    assert parsed.workdir == Path("runs/folder")
    assert parse(["--data.source", "digits"]).config == presets.digits()
    assert parse(["digits", "--data.source", "pictures"]).config.epochs == presets.digits().epochs
    # A file of settings may name the pictures, too.
    settings = tmp_path / "mine.toml"
    settings.write_text('[data]\nsource = "pictures"\n')
    assert parse(["--config", str(settings)]).config.model == folder.model
    settings.write_text("epochs = 3\n")
    assert parse(["--config", str(settings)]).config.model == presets.digits().model


def test_a_folder_in_place_of_a_preset_is_a_hint(tmp_path):
    with pytest.raises(
        UserError, match=rf"there is no preset '.*; to train on {tmp_path}, give --data.source {tmp_path}$"
    ):
        parse([str(tmp_path)])


def test_options_change_a_preset():
    parsed = parse(
        "tiny_imagenet --epochs 3 --data.image_size=32 --resolutions 0 24 .5 32 --model.widths 8 16 --model.blocks 1 2 "
        "--augment.no_flip --optim.clip_norm 1 --data.validation_fraction .2 --workdir x/y".split()
    )
    assert parsed.workdir == Path("x/y")
    assert parsed.config.epochs == 3
    assert parsed.config.resolutions == ((0.0, 24), (0.5, 32))
    preset = presets.tiny_imagenet()
    assert parsed.config.model == dataclasses.replace(preset.model, widths=(8, 16), blocks=(1, 2))
    assert parsed.config.augment == dataclasses.replace(preset.augment, flip=False)
    assert parsed.config.optim.clip_norm == 1
    assert parsed.config.data.validation_fraction == 0.2
    assert parsed.config.data.image_size == 32
    assert parsed.config.data.source == "tiny_imagenet"


@pytest.mark.parametrize("option", [["--model.name", "seed"], ["--model.name=seed"]])
def test_another_network_has_its_default_shape(option):
    assert parse(option).config.model == config.ModelConfig(name="seed")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("imagewoof", "there is no preset 'imagewoof'; there are: digits, folder, finetune, tiny_imagenet"),
        ("--optim.lr 3", "there is no option --optim.lr; there are: --optim.name, --optim.learning_rate"),
        ("--learning_rate 3", r"^there is no option --learning_rate; did you mean --optim\.learning_rate\?$"),
        ("--lr=3", "there is no option --lr=3; there are: --init_from, --freeze, --fit_head, --epochs, --batch_size"),
        ("--optim.name adagrad", "^optim.name is 'adagrad'; it must be one of 'sgd', 'adam', 'adamw', 'muon'$"),
        ("--model.name alexnet", "^model.name is 'alexnet'; it must be one of 'resnet', .*'seed', 'prototype1'"),
        ("--epochs five", r"^epochs is 'five'; it must be a whole number$"),
        ("--epochs", "^--epochs: expected one argument; see python -m jaxcnn.train .* --help$"),
        ("--epochs 0", "epochs is 0; it must be at least 1"),
        ("digits tiny_imagenet", "'tiny_imagenet' belongs to no option"),
        ("--checkpoint_minutes inf", "checkpoint_minutes is inf; it must be finite"),
        ("--optim.clip_norm inf", r"optim\.clip_norm is inf; it must be finite"),
        ("--seed 99999999999999999999999", "seed is 9+; it must be from 0 to"),
        (
            "--init_from=",
            "init_from is empty; give 'shipped', 'efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2', "
            "timm:NAME, a .safetensors file or the workdir of a run",
        ),
        ("--init_from ~nosuchuser/x", "init_from is '~nosuchuser/x', but there is no such home directory"),
        (f"--init_from {'x' * 5000}", "init_from is 'x+...', which cannot be read: File name too long"),
        ("--workdir=", "workdir is empty; give a path or leave the option out"),
        ("--augment.crop_scale 0.5", "^augment.crop_scale is '0.5'; it must be a number and a number, or None$"),
        ("--augment.flip=yes", "--augment.no_flip: ignored explicit argument 'yes'; see python"),
        ("--model.name seed --model.widths 3", "the network 'seed' is fixed"),
    ],
)
def test_a_wrong_command_line_is_one_line_of_error(line, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(line.split())
    assert "\n" not in str(caught.value)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_process_ends_with_one_line_and_status_2():
    done = run("jaxcnn.train", "--epochs", "three")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m jaxcnn.train: ")


def test_sigterm_removes_unfinished_files(tmp_path):
    begun = tmp_path / "begun"
    program = f"""
import pathlib, time
from jaxcnn import cli

def main(_):
    begun = pathlib.Path({str(begun)!r})
    try:
        begun.touch()
        time.sleep(60)
    finally:
        begun.unlink()

cli.run(main, "prog")
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, b"")
    assert not begun.exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "there is not enough memory (MemoryError); lower it"),
        (MemoryError("Unable to allocate 9 GiB"), "there is not enough memory (Unable to allocate 9 GiB); lower it"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nBuffers:"),
            "there is not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.); lower it",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/b"),
            "[Errno 28] No space left on device: 'runs/a/b'; make room and run the same command again",
        ),
        (
            OSError(errno.EIO, "Input/output error", "c"),
            "[Errno 5] Input/output error: 'c'; check the disk and run the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "c"),
            "[Errno 13] Permission denied: 'c'; allow this user to read and write there and run the same command again",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "c"), "[Errno 2] No such file: 'c'"),
    ],
)
def test_a_lack_of_memory_or_space_is_one_line(monkeypatch, capsys, error, line):
    def fail(_):
        raise error

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        cli.run(fail, "prog", memory="lower it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"prog: {line}\n"


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        cli.run(fail, "prog")


def test_characters_that_the_output_cannot_encode_are_replaced():
    program = 'from jaxcnn import cli\ncli.run(lambda _: print("Żubr"), "prog")'
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, env=environment)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"?ubr"], b"")


@pytest.mark.parametrize("line", ["jaxcnn", "jaxcnn.sweep --help", "jaxcnn.train --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_no_error(line, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *line.split()],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) in [(1, b""), (0, b"")]


def run_program(lines, *, shell=(), **streams):
    """Runs the lines of a command's `main`, which may import; returns the finished process.

    `shell` is a command to start it with.
    """
    main = "\n".join(["from jaxcnn import cli", "def main(_):", *(f"    {line}" for line in lines)])
    command = [sys.executable, "-c", f"{main}\ncli.run(main, 'prog')"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run([*shell, *command], cwd=ROOT, text=True, timeout=60, **pipes)


@pytest.mark.parametrize(
    ("line", "status"),
    [("print('result')", 0), ("from jaxcnn.errors import UserError; print('result'); raise UserError('refused')", 2)],
)
def test_a_command_whose_errors_nobody_reads_ends_as_it_would(line, status):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run_program(["from jaxcnn.terminal import console", "console.print('begun')", line], stderr=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (status, "result\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is full")
def test_output_for_which_there_is_no_room_is_one_line():
    with open("/dev/full", "w") as full:
        done = run_program(["print('result')"], stdout=full)
    reason = "[Errno 28] No space left on device; make room and run the same command again"
    assert (done.returncode, done.stderr) == (1, f"prog: {reason}\n")


def test_nothing_is_printed_into_a_file_in_place_of_a_closed_stream(tmp_path):
    lines = ["import os, sys", f"file = open({str(tmp_path / 'metrics.jsonl')!r}, 'w')", "os.write(2, b'a notice')"]
    done = run_program(lines, shell=("sh", "-c", 'exec "$0" "$@" 2>&-'))
    assert done.returncode == 0
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_home_directory_of_a_workdir_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for line in (["--workdir=~/runs/a"], ["--workdir", "~/runs/a"]):
        assert parse(line).workdir == tmp_path / "runs" / "a"


def test_characters_that_control_a_terminal_are_replaced(monkeypatch, capsys):
    def fail(_):
        raise UserError("cat/Icon\r\x1b[2J\n.png é is no picture")

    with pytest.raises(SystemExit):
        cli.run(fail, "prog")
    assert capsys.readouterr().err == "prog: cat/Icon\ufffd\ufffd[2J\ufffd.png é is no picture\n"


@pytest.mark.parametrize(("options", "quiet"), [([], False), (["--quiet"], True)])
def test_libraries_that_load_long_are_announced_unless_it_is_to_be_quiet(monkeypatch, tmp_path, options, quiet):
    stages = []

    @contextlib.contextmanager
    def stage(what):
        stages.append((what, console.quiet))
        yield

    monkeypatch.setattr(sys.modules["jaxcnn.train"], "stage", stage)
    monkeypatch.setattr(console, "quiet", False)
    with pytest.raises(UserError, match=r"lies in data.source .*, among the pictures"):
        main(["--data.source", str(tmp_path), "--workdir", str(tmp_path / "run"), *options])
    assert stages == [("loading libraries", quiet)]


@pytest.mark.run
def test_help_lists_presets_and_every_option():
    done = run("jaxcnn.train", "--help")
    assert done.returncode == 0
    for word in [*presets.PRESETS, "--data.source", "--optim.learning_rate", "--workdir", "--augment.cutmix"]:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("module", "lines"),
    [
        *(("jaxcnn.train", lines) for lines in (0, 40, 120)),
        *((f"jaxcnn.{name}", 40) for name in ("predict", "inspect", "compare", "sweep", "evaluate", "plan")),
        ("jaxcnn", 0),
        ("export", 40),
    ],
)
def test_ctrl_c_while_libraries_are_imported_leaves_no_traceback(module, lines):
    """Interrupts the process after so many further imports; each is a line of standard error."""
    command = [sys.executable, "-X", "importtime", "-m", module, *(["train"] if module == "jaxcnn" else [])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.stderr.readline().split("|")[-1].strip() != "jaxcnn":
            assert process.poll() is None
        for _ in range(lines):
            process.stderr.readline()
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT  # Which shells call 130.
    assert [line for line in errors.splitlines() if not line.startswith("import time:")] == []
    assert printed == ""


def test_a_program_that_imports_the_package_keeps_its_handler():
    program = "import signal, jaxcnn; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n"


def run_interruptible(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in which Ctrl-C acts as in a command; it may import modules from a folder."""
    program = f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n{code}\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "prog: interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_signal_that_an_import_would_drop_takes_effect_after_it(tmp_path, number, status, said):
    (tmp_path / "library.py").write_text(
        f"import os\nfor _ in range(2):\n    try: os.kill(os.getpid(), {int(number)})\n    except BaseException: pass\n"
    )
    code = (
        "import time\nfrom jaxcnn import cli\n"
        "def main(arguments):\n    import library\n    print('imported', flush=True)\n    time.sleep(30)\n"
        "cli.run(main, 'prog')"
    )
    done = run_interruptible(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "imported\n", said)


@pytest.mark.parametrize(("ending", "said"), [("raise KeyboardInterrupt", "prog: interrupted\n"), ("pass", "")])
def test_ctrl_c_while_the_interpreter_shuts_down_leaves_no_traceback(tmp_path, ending, said):
    code = (
        "import os, threading, time\nfrom jaxcnn import cli\n"
        "def interrupt():\n    time.sleep(0.5)\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(30)\n"
        f"def main(arguments):\n    threading.Thread(target=interrupt).start()\n    {ending}\n"
        "cli.run(main, 'prog')"
    )
    done = run_interruptible(code, tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, said)  # Which shells call 130.
