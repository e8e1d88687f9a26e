"""The walls between the packages: what may import what."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from jaxcnn.commands import COMMANDS
from jaxcnn.config import to_json
from jaxcnn.presets import digits

ROOT = Path(__file__).parent.parent
PACKAGES = ("jaxcnn", "export", "server")
FOLDERS = sorted(
    str(path.parent.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")
)
"""The packages, and the packages in them."""


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level packages that a module imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").split(".")[0]


def modules_importing(package: str, forbidden: set[str]) -> dict[str, set[str]]:
    """Modules of a package that import something forbidden, with what they import."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        crossed = forbidden & set(imported_packages(path))
        if crossed:
            found[str(path.relative_to(ROOT))] = crossed
    return found


def rooms_imported(folder: str) -> dict[str, set[str]]:
    """For each room of a package, a module at its top or a folder, the other rooms that it imports."""
    inside = f"{folder.replace('/', '.')}."
    rooms = {path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in (ROOT / folder).rglob("*.py"):
        room = path.relative_to(ROOT / folder).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            imported = [name.removeprefix(inside).split(".")[0] for name in names if name.startswith(inside)]
            found[room] |= {name if name in rooms else "__init__" for name in imported} - {room}
    return found


def modules_loaded_by(module: str) -> set[str]:
    """Top-level packages in memory after importing a module in a process of its own."""
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_packages_are_there_to_be_checked():
    assert {*PACKAGES, "jaxcnn/data", "jaxcnn/data/sources", "server/protocols"} <= set(FOLDERS)
    for package in PACKAGES:
        arrows = rooms_imported(package)
        assert sum(map(len, arrows.values())) > len(arrows) > 3


def test_server_imports_no_training_and_no_jax():
    assert modules_importing("server", {"jaxcnn", "export", "jax", "jaxlib", "flax", "optax", "orbax"}) == {}
    assert not modules_loaded_by("server.app") & {"jaxcnn", "export", "jax", "flax"}


def test_in_jaxcnn_only_training_imports_export():
    assert modules_importing("jaxcnn", {"export", "server"}) == {"jaxcnn/training.py": {"export"}}


def test_predictions_need_no_jax():
    assert not modules_loaded_by("jaxcnn.predict") & {"jax", "flax", "optax", "orbax", "scipy", "sklearn", "onnx"}


def test_training_begins_without_what_its_report_needs():
    needed_later = {"matplotlib", "jinja2", "scipy", "sklearn", "tensorboardX", "onnx"}
    assert not modules_loaded_by("jaxcnn.training") & needed_later


REFUSED = (
    "jaxcnn.train --wrong 1",
    "jaxcnn.train --epochs many",
    "jaxcnn.train finetune --wrong 1",
    "jaxcnn.train folder --data.source missing",
    "jaxcnn.train --init_from missing",
    "jaxcnn.train --config missing.toml",
    "jaxcnn.evaluate --wrong 1",
    "jaxcnn.evaluate missing",
    "jaxcnn.predict --wrong 1",
    "jaxcnn.predict missing pictures",
    "jaxcnn.inspect --wrong 1",
    "jaxcnn.inspect missing",
    "jaxcnn.plan --wrong 1",
    "jaxcnn.plan --topology missing",
    "jaxcnn.compare --wrong 1",
    "jaxcnn.compare missing",
    "export --wrong 1",
    "export missing",
    "jaxcnn.sweep --wrong 1 --seeds 2",
    "jaxcnn.sweep --seeds none",
    "jaxcnn.evaluate run --wrong 1",
    "jaxcnn.evaluate run --data.source missing",
    "export run --wrong 1",
    "export run --quantize int8 --data.source missing",
)
"""Command lines with a mistake; `run` is a workdir."""
HEAVY = {*"jax flax optax orbax onnx scipy sklearn matplotlib tensorboardX tensorflow_datasets".split()}


def test_help_and_refusals_import_nothing_that_takes_seconds(tmp_path):
    program = f"""
import contextlib, io, runpy, sys
for line in sys.stdin.read().splitlines():
    module, *arguments = line.split()
    sys.argv = [module, *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code
    print(line, status, *{HEAVY!r} & set(sys.modules), sep="; ")
"""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(digits()))
    helps = [f"{command.module} --help" for command in COMMANDS.values()]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input="\n".join([*REFUSED, *helps]),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [f"{line}; 2" for line in REFUSED] + [f"{line}; 0" for line in helps]


def test_the_converter_knows_no_jaxcnn():
    reads_workdir = ("__main__", "card", "pretrained", "publish", "sidecars", "workdir")
    allowed = {f"export/{name}.py": {"jaxcnn"} for name in reads_workdir}
    found = modules_importing("export", {"jaxcnn", "server", "optax", "orbax"})
    assert found.items() <= allowed.items()
    assert "jaxcnn" not in modules_loaded_by("export.converter")


def test_config_is_standard_library_only():
    for name in ("config", "typed_json", "errors"):
        imported = set(imported_packages(ROOT / f"jaxcnn/{name}.py")) - {"jaxcnn"}
        assert imported <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_rooms_import_in_no_circle(folder):
    TopologicalSorter(rooms_imported(folder)).prepare()  # Raises CycleError, which names the rooms.


ORDER = (
    *("step", "training_run", "run_step", "divergence", "validation", "history", "stopping", "run_epoch"),
    *("loop", "training"),
)
"""The modules of the training, each of which may import those before it."""


def test_the_modules_of_the_training_import_in_their_order():
    arrows = rooms_imported("jaxcnn")
    for number, module in enumerate(ORDER):
        assert not arrows[module] & set(ORDER[number:]), module
    # A loop of the user's own takes its place: nothing below may need it.
    assert {module for module, imported in arrows.items() if "loop" in imported} == {"__init__", "training"}


def test_a_circle_of_rooms_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for folder in ("house", "house/run", "house/run/files"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "house" / "run" / "log.py").write_text("from house import loop\nfrom house.run.files import disk\n")
    (tmp_path / "house" / "run" / "files" / "disk.py").write_text("import house.run.log\n")
    (tmp_path / "house" / "loop.py").write_text("def f():\n    from house.run.log import write\n")
    for folder, expected in (
        ("house", {"__init__": set(), "run": {"loop"}, "loop": {"run"}}),
        ("house/run", {"__init__": set(), "log": {"files"}, "files": {"log"}}),
    ):
        arrows = rooms_imported(folder)
        assert arrows == expected
        with pytest.raises(CycleError):
            TopologicalSorter(arrows).prepare()


def test_top_level_is_as_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    named = {name for name in tops if not name.startswith(".")}
    assert named == {
        "pyproject.toml",
        "jaxcnn",
        "export",
        "server",
        "tests",
        "README.md",
        "LICENSE",
        "requirements.lock",
    }
