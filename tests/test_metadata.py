"""What a file says about itself, read strictly."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.config import to_json
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.presets import digits


def of(**values):
    return Metadata(Path("a.onnx"), values, "python -m export")


def test_what_was_written_is_read():
    found = of(names='["cat", "dög"]', config=to_json(digits()), step="7")
    assert found.texts("names") == ("cat", "dög")
    assert found.config() == digits()
    assert found.read("step", int) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "its metadata has no config"),
        ({"config": "[" * 100_000}, "its metadata has a config that is not JSON"),
        ({"config": "{"}, "its metadata has a config that is not JSON"),
        ({"config": "[]"}, "its metadata has a config that is list, not dict"),
        ({"config": '{"epochs": 0}'}, "epochs is 0; it must be at least 1"),
    ],
)
def test_what_is_not_ours_is_told(values, message):
    with pytest.raises(UserError) as caught:
        of(**values).config()
    assert str(caught.value) == f"a.onnx was not made by `python -m export`: {message}"


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps))
def test_any_text_is_read_or_refused(text):
    for read in (lambda metadata: metadata.texts("config"), lambda metadata: metadata.config()):
        with suppress(UserError):  # any other error fails the test
            read(of(config=text))
