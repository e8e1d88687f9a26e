"""The command for mutation testing, as far as it goes without mutmut."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.mutants import ROOT, TESTS, FastestFirst, read_results


def test_all_modules_and_their_tests_exist():
    for module, tests in TESTS.items():
        for path in (module, *tests):
            assert (ROOT / path).is_file(), path


def test_the_results_of_a_module_are_read_by_number(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_results(path, "a.py", "aa") == {}
    results = [
        {"module": module, "source": source, "number": number}
        for module, source, number in (("a.py", "aa", 3), ("a.py", "older", 5), ("b.py", "aa", 4))
    ]
    path.write_text("".join(f"{json.dumps(result)}\n" for result in [*results, {"module": "a.py", "number": 6}]))
    assert read_results(path, "a.py", "aa") == {3: results[0]}


@pytest.mark.drill
@pytest.mark.parametrize(
    ("test", "outcome"),
    [("def test(): pass", "survived"), ("def test(): assert False", "killed"), ("import missing", "not imported")],
)
def test_an_outcome_says_whether_a_test_failed(tmp_path, test, outcome):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "test_one.py").write_text(test)
    # In a process that has not started threads.
    code = f"from tests.mutants import *; print(run_tests(Path({str(copy)!r}), ['test_one.py'], limit=60)[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{outcome}\n", done.stderr


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
