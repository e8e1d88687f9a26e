"""The trainings behind weights, validated strictly: a record may come from an untrusted file."""

import dataclasses
import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.errors import UserError
from jaxcnn.run.earlier_trainings import Training, record_earlier
from jaxcnn.typed_json import decode

TRAININGS = st.builds(Training, st.text(), st.text(), st.dictionaries(st.text(), st.text()))
SCALARS = st.none() | st.booleans() | st.floats() | st.text() | st.integers()
KEYS = st.sampled_from([field.name for field in dataclasses.fields(Training)]) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(st.lists(TRAININGS))
def test_a_record_is_read_back(tmp_path_factory, trainings):
    path = tmp_path_factory.mktemp("run") / "earlier_trainings.json"
    record_earlier(trainings, path)
    assert decode(tuple[Training, ...], json.loads(path.read_text()), "trainings") == tuple(trainings)


@given(VALUES | st.lists(st.fixed_dictionaries({field.name: VALUES for field in dataclasses.fields(Training)})))
def test_any_other_value_is_refused_or_holds_only_text(value):
    with suppress(UserError):
        for training in decode(tuple[Training, ...], value, "trainings"):
            texts = (training.dataset, training.license, *training.recipe, *training.recipe.values())
            assert all(isinstance(text, str) for text in texts)
