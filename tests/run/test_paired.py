"""McNemar's test on predictions for the same pictures."""

import pytest

from jaxcnn.run.paired import Answer, Disagreement, adjust, compare_answers, mcnemar


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),  # Two tails of five coins that fall alike.
        (5, 0, 2 / 32),
        (1, 5, 2 * 7 / 64),
        (121, 59, 4.434e-6),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(first, second, p):
    assert mcnemar(first, second) == pytest.approx(p, rel=0.01)


def test_p_values_are_adjusted_by_holm():
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.9, 0.8]) == [1.0, 1.0]
    assert adjust([]) == []


def test_pictures_are_paired_by_name():
    first = {"a": Answer("cat", "cat"), "b": Answer("cat", "dog"), "c": Answer("dog", "dog"), "d": Answer("dog", "dog")}
    second = {
        "a": Answer("cat", "dog"),
        "b": Answer("cat", "cat"),
        "c": Answer("dog", "dog"),
        "e": Answer("dog", "cat"),
    }
    pair = compare_answers(first, second)
    assert pair.pictures == 3
    assert pair.first_only == (Disagreement("a", "cat", "cat", "dog"),)
    assert pair.second_only == (Disagreement("b", "cat", "dog", "cat"),)
    assert pair.p_value == 1


def test_a_picture_with_another_label_is_left_out():
    pair = compare_answers({"a": Answer("cat", "cat")}, {"a": Answer("dog", "cat")})
    assert (pair.pictures, pair.first_only, pair.second_only) == (0, (), ())
