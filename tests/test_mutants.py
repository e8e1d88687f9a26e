"""The command for mutation testing, as far as it goes without mutmut."""

import subprocess
import sys
from types import SimpleNamespace

from tests.mutants import ROOT, TESTS, FastestFirst, read_results


def test_all_modules_and_their_tests_exist():
    for module, tests in TESTS.items():
        for path in (module, *tests):
            assert (ROOT / path).is_file(), path


def test_the_results_of_a_module_are_read_by_number(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_results(path, "a.py") == {}
    path.write_text('{"module": "a.py", "number": 3, "outcome": "killed"}\n{"module": "b.py", "number": 4}\n')
    assert read_results(path, "a.py") == {3: {"module": "a.py", "number": 3, "outcome": "killed"}}


def test_the_fastest_tests_come_first(tmp_path):
    first = FastestFirst(tmp_path / "durations.json")
    for name, seconds in (("a", 1.0), ("b", 1.5), ("a", 1.0)):
        first.pytest_runtest_logreport(SimpleNamespace(nodeid=name, duration=seconds))
    first.pytest_sessionfinish()
    items = [SimpleNamespace(nodeid=name) for name in "abc"]
    FastestFirst(tmp_path / "durations.json").pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["c", "b", "a"]


def test_the_command_names_what_is_missing():
    code = "import sys; sys.modules['mutmut'] = None; from tests.mutants import main; main(['server/body.py'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "python -m tests.mutants: mutmut is missing; run pip install mutmut==3.8.1\n",
    )
