"""Every target on the inputs of its corpus, and on random changes of them."""

import importlib.util
import itertools
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from server.picture import Picture
from server.protocols.native import parse
from tests.fuzz import FOLDER, targets
from tests.fuzz.__main__ import INSTRUMENTED
from tests.fuzz.connection import CONTINUE, parse_responses
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS = 5
CORPORA = {name: sorted((FOLDER / name).iterdir()) for name in TARGETS}
REFUSED = {
    "picture": {"attack-bmp-palette", "attack-jpeg-end", "attack-webp-canvas", "tiff"},
    "form": {"attack-json", "attack-parts", "quoted"},
    "inference": {"attack-json"},
    "base64": {"unicode"},
}
"""Inputs that the server refuses, by target."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def run(name: str) -> None:
    for path in CORPORA[name]:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_finds_a_fault(name):
    run(name)


@pytest.mark.parametrize("name", REFUSED)
def test_all_but_a_few_inputs_of_the_corpus_get_past_the_checks(monkeypatch, name):
    said, refused = [], set()
    monkeypatch.setattr(targets, "check_line", said.append)
    for path in CORPORA[name]:
        TARGETS[name](path.read_bytes())
        refused |= {path.name} if said else set()
        said.clear()
    assert refused == REFUSED[name]


@pytest.mark.drill
@pytest.mark.parametrize("name", TARGETS)
def test_no_random_change_finds_a_fault(name):
    end = time.monotonic() + SECONDS
    for count, data in enumerate(mutated([path.read_bytes() for path in CORPORA[name]], Random(0))):
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"number {count}: {data!r}")
            raise
        if time.monotonic() > end:
            break


def test_the_corpora_are_small():
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in CORPORA.items()}
    assert set(sizes) == {folder.name for folder in FOLDER.iterdir()}
    assert all(0 < size < 32_000 for size in sizes.values()), sizes


def test_changes_are_the_same_from_the_same_seed():
    first, second = (list(itertools.islice(mutated([b"some", b"bytes"], Random(7)), 200)) for _ in range(2))
    assert first == second
    assert len(set(first)) > 150


@pytest.mark.parametrize(
    ("target", "function", "broken"),
    [
        ("base64", "parse_base64", lambda place, text: b"x"),
        ("folder", "open_class_folders", lambda tree, name: {}["missing"]),
        ("form", "parse", lambda *_, **__: [][0]),
        ("picture", "decoding", SimpleNamespace(decode=lambda *_, **__: np.zeros((8, 8, 3), np.uint8))),
    ],
)
def test_a_fault_is_found(monkeypatch, target, function, broken):
    monkeypatch.setattr(targets, function, broken)
    with pytest.raises((AssertionError, LookupError)):
        run(target)


@pytest.mark.drill
@pytest.mark.parametrize(
    ("target", "name", "limit", "lifted"),
    [
        ("picture", "attack-png-texts", "server.png.strip", lambda png: png),
        ("picture", "attack-png-profile", "server.png.strip", lambda png: png),
        ("picture", "attack-png-exif", "server.exif.count_values", lambda exif: {}),
        ("picture", "attack-jpeg-end", "server.jpeg._MISPLACED", frozenset()),
        (
            "picture",
            "attack-webp-canvas",
            "server.picture.Picture",
            lambda data, *, max_pixels, **options: Picture(data, max_pixels=10**9, **options),
        ),
        ("picture", "attack-bmp-palette", "server.picture._check_palette", lambda data: None),
        ("form", "attack-json", "server.protocols.native.MAX_VALUES", 10**9),
        ("form", "attack-parts", "tests.fuzz.targets.parse", lambda *form, max_images: parse(*form, max_images=10**9)),
        ("inference", "attack-json", "server.protocols.open_inference.MAX_VALUES", 10**9),
    ],
)
def test_an_attack_that_the_server_does_not_limit_is_a_fault(monkeypatch, target, name, limit, lifted):
    data = (FOLDER / target / name).read_bytes()
    TARGETS[target](data)
    monkeypatch.setattr(limit, lifted)
    with pytest.raises(AssertionError, match=r"bytes at once, at most|segments were parsed"):
        TARGETS[target](data)


@pytest.mark.parametrize(
    "written",
    [
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello!",
    ],
)
def test_an_invalid_response_is_a_fault(written):
    with pytest.raises(AssertionError):
        parse_responses(written)


def test_the_coverage_of_every_target_is_measured():
    assert INSTRUMENTED.keys() == TARGETS.keys()
    for package in set(itertools.chain.from_iterable(INSTRUMENTED.values())):
        assert importlib.util.find_spec(package), package


def test_nothing_that_is_measured_is_imported_before():
    code = (
        "import sys; from tests.fuzz.__main__ import INSTRUMENTED; print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert not imported & {package.partition(".")[0] for packages in INSTRUMENTED.values() for package in packages} - {
        "tests"
    }


def test_an_interim_response_is_no_response():
    assert parse_responses(CONTINUE + CONTINUE + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") == [(200, b"ok")]
    assert parse_responses(CONTINUE) == []


def test_the_runner_names_what_is_missing():
    command = [
        sys.executable,
        "-c",
        "import sys; sys.modules['atheris'] = None; from tests.fuzz.__main__ import main; main(['http'])",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "python -m tests.fuzz: atheris is missing; run pip install atheris\n")
