import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.data import texts
from jaxcnn.data.texts import Texts


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of four texts, so that few of them fill several."""
    patch = pytest.MonkeyPatch()
    patch.setattr(texts, "BLOCK", 4)
    yield
    patch.undo()


# Names of files need not be valid Unicode.
@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=12))
def test_texts_are_a_sequence(expected):
    found = Texts(expected)
    assert len(found) == len(expected)
    assert list(found) == expected
    assert [found[place] for place in range(len(expected))] == expected
    assert [found[-1 - place] for place in range(len(expected))] == expected[::-1]


def test_there_is_nothing_behind_the_last_text():
    found = Texts(map(str, range(8)))
    with pytest.raises(IndexError):
        found[8]
    found.append("8")
    assert found[8] == "8"
