"""What `import jaxcnn` offers: the names, their types, and how little it costs to import."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import jaxcnn
from jaxcnn.__main__ import main
from jaxcnn.commands import COMMANDS
from jaxcnn.extras import install_command

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "AugmentConfig": "jaxcnn.config",
    "ClassProbability": "jaxcnn.prediction",
    "Classifier": "jaxcnn.classifier",
    "Config": "jaxcnn.config",
    "DataConfig": "jaxcnn.config",
    "Evaluation": "jaxcnn.metrics",
    "ModelConfig": "jaxcnn.config",
    "OptimConfig": "jaxcnn.config",
    "Prediction": "jaxcnn.prediction",
    "Run": "jaxcnn.training_run",
    "TrainRecord": "jaxcnn.run.metrics_log",
    "TrainState": "jaxcnn.state",
    "UserError": "jaxcnn.errors",
    "ValidationRecord": "jaxcnn.run.metrics_log",
    "begin": "jaxcnn.training",
    "check_finite": "jaxcnn.divergence",
    "conclude": "jaxcnn.training",
    "evaluate": "jaxcnn.evaluation",
    "evaluate_variables": "jaxcnn.validation",
    "fit": "jaxcnn.loop",
    "load": "jaxcnn.classifier",
    "presets": "jaxcnn.presets",
    "take_step": "jaxcnn.run_step",
    "train": "jaxcnn.training",
    "train_batches": "jaxcnn.data.batches",
}
"""Every public name, and the module that defines it."""

USER_CODE = """\
from pathlib import Path

import pytest

import jaxcnn

config: jaxcnn.Config = jaxcnn.presets.digits()
found: jaxcnn.Evaluation | None = jaxcnn.train(config, "runs/digits")
classifier: jaxcnn.Classifier = jaxcnn.load(Path("runs/digits"))
top1: float = jaxcnn.evaluate(classifier, "pictures").top1
name: str = classifier.predict("photo.jpg").name
try:
    with jaxcnn.begin(config, "runs/own") as (run, state, checkpoints, log):
        finished: bool = jaxcnn.fit(run, state, checkpoints=checkpoints, log=log)
        jaxcnn.conclude(run, "runs/own")
except jaxcnn.UserError as error:
    print(error)
"""


def python(code: str) -> str:
    """What a program prints, in a process of its own: other tests import the commands, whose names the API shares."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert sorted(jaxcnn.__all__) == sorted(PUBLIC) == jaxcnn.__all__
    assert set(PUBLIC) <= set(dir(jaxcnn))
    code = "import json, jaxcnn; names = {name: getattr(jaxcnn, name) for name in jaxcnn.__all__}"
    modules = "{name: getattr(value, '__module__', None) or value.__name__ for name, value in names.items()}"
    assert json.loads(python(f"{code}; print(json.dumps({modules}))")) == PUBLIC


def test_a_name_that_is_not_there():
    code = "import jaxcnn\ntry: jaxcnn.trian\nexcept AttributeError as error: print(error)"
    assert python(code) == "module 'jaxcnn' has no attribute 'trian'\n"


def test_importing_loads_nothing_else():
    loaded = python("import sys; before = set(sys.modules); import jaxcnn; print(*set(sys.modules) - before)").split()
    assert {name.split(".")[0] for name in loaded} <= {
        "jaxcnn",
        "importlib",
        "typing",
        "_typing",
        *sys.stdlib_module_names,
    }
    assert sorted(name for name in loaded if name.startswith("jaxcnn")) == ["jaxcnn", "jaxcnn.version"]


def test_commands_are_imported_by_no_other_module():
    """Importing `jaxcnn.train` would put that module in the place of the function `jaxcnn.train`."""
    everything = "import sys, export.workdir, jaxcnn; [getattr(jaxcnn, name) for name in jaxcnn.__all__]"
    assert not {"jaxcnn.train", "jaxcnn.evaluate"} & set(python(f"{everything}; print(*sys.modules)").split())


@pytest.mark.run
def test_users_code_is_type_checked(tmp_path):
    """As it is where the packages are installed: an installed package without `py.typed` has no types."""
    venv.create(tmp_path / "venv", symlinks=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "installed.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "good.py").write_text(USER_CODE)
    (tmp_path / "bad.py").write_text(
        "import jaxcnn, export, server\n\njaxcnn.load(3)\njaxcnn.train('digits', 'runs')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={interpreter}"]
    done = subprocess.run([*command, "good.py", "bad.py"], cwd=tmp_path, capture_output=True, text=True)
    errors = re.findall(r"^(\S+?:\d+): error: .* \[(\S+)\]$", done.stdout, re.MULTILINE)
    assert errors == [("bad.py:3", "arg-type"), ("bad.py:4", "arg-type")], done.stdout


def test_the_overview_fits_a_screen_and_names_all_commands():
    said = subprocess.run([sys.executable, "-m", "jaxcnn"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) <= 24
    assert max(map(len, said.splitlines())) <= 85
    for name in COMMANDS:
        assert f"\n  python -m jaxcnn {name} " in said


@pytest.mark.run
def test_a_command_by_its_name():
    for arguments, status, said in (
        (["train", "--epochs", "0"], 2, "python -m jaxcnn.train: epochs is 0; it must be at least 1"),
        (["evaluate"], 2, "python -m jaxcnn.evaluate: give a workdir or an .onnx file first"),
        (["export"], 2, "python -m export: give the folder of a run or the name of a network first"),
        (["swim"], 2, f"python -m jaxcnn: there is no command 'swim'; there are: {', '.join(COMMANDS)}"),
    ):
        done = subprocess.run([sys.executable, "-m", "jaxcnn", *arguments], cwd=ROOT, capture_output=True, text=True)
        # Where libraries take long to load, a line before says so.
        assert (done.returncode, done.stderr.splitlines()[-1][: len(said)]) == (status, said)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "jaxcnn.serve", raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxcnn"])
    with pytest.raises(SystemExit, match="2"):
        main(["serve"])
    said = f"jaxcnn serve: the package uvicorn is not installed; run: {install_command('serve')}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    # The last one is imported by its function `main`, not before.
    [("export", "numpy", "export"), ("jaxcnn.serve", "uvicorn", "serve"), ("jaxcnn.plan", "jax", "train")],
)
def test_a_module_that_misses_a_package_says_the_same(tmp_path, module, package, extra):
    error = f"ModuleNotFoundError({f'No module named {package!r}'!r}, name={package!r})"
    (tmp_path / f"{package}.py").write_text(f"raise {error}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True)
    said = f"python -m {module}: the package {package} is not installed; run: {install_command(extra)}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, said)
    assert "Traceback" not in done.stderr


def test_a_module_of_the_project_that_is_missing_is_a_defect(tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("import jaxcnn.absent\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "jaxcnn.predict"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")
