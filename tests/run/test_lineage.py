"""What weights have learnt in, read strictly: it may come from a stranger's file."""

import dataclasses
import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.run.lineage import Training, parse_trainings, record_earlier

TRAININGS = st.builds(Training, st.text(), st.text(), st.dictionaries(st.text(), st.text()))
SCALARS = st.none() | st.booleans() | st.floats() | st.text() | st.integers()
KEYS = st.sampled_from([each.name for each in dataclasses.fields(Training)]) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(st.lists(TRAININGS))
def test_what_is_recorded_can_be_read(tmp_path_factory, trainings):
    path = tmp_path_factory.mktemp("run") / "earlier_trainings.json"
    record_earlier(trainings, path)
    assert parse_trainings(json.loads(path.read_text())) == tuple(trainings)


@given(VALUES | st.lists(st.fixed_dictionaries({name.name: VALUES for name in dataclasses.fields(Training)})))
def test_whatever_else_it_is_is_refused_or_is_all_text(value):
    with suppress(ValueError):
        for each in parse_trainings(value):
            texts = (each.dataset, each.license, *each.recipe, *each.recipe.values())
            assert all(isinstance(text, str) for text in texts)
