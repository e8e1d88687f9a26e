"""The learning rate range test."""

import math

import numpy as np
import pytest

from jaxcnn import range_test
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.errors import UserError
from jaxcnn.range_test import RangeTest, has_diverged, run_range_test, smooth
from jaxcnn.run.range_page import write_range_page


def test_the_steepest_and_the_lowest_rate():
    rates = np.geomspace(1e-6, 10, 50)
    losses = 2 - 1 / (1 + np.exp(-3 * (np.log10(rates) + 3))) + (rates > 0.5) * rates
    found = RangeTest(tuple(rates), tuple(losses))
    assert found.steepest == pytest.approx(1e-3, rel=0.4)
    assert 0.05 < found.lowest < 0.5


@pytest.mark.parametrize("steps", [50, 200, 1000, 3000])
def test_chance_does_not_choose_the_rate_however_many_steps_there_are(steps):
    rates = np.geomspace(1e-6, 10, steps)
    falling = 2.4 - 2 / (1 + np.exp(-2.5 * (np.log10(rates) + 2)))
    for seed in range(10):
        # Batches of 64 pictures differ so much.
        losses = smooth((falling + np.random.default_rng(seed).normal(0, 0.06, steps)).tolist())
        assert 2e-3 < RangeTest(tuple(rates), tuple(losses)).steepest < 0.1


@pytest.mark.parametrize("losses", [(), (2.3,)])
def test_a_loss_that_is_never_or_only_once_finite_is_an_error(losses):
    with pytest.raises(UserError, match="not finite at the lowest learning rate"):
        _ = RangeTest((1e-6,)[: len(losses)], losses).steepest


def test_a_loss_that_never_falls_is_an_error():
    with pytest.raises(UserError, match="the loss does not fall at any learning rate"):
        _ = RangeTest((1e-3, 1e-2, 1e-1), (1.0, 2.0, 3.0)).steepest


def test_the_average_is_corrected_for_its_start_and_ends_before_nan():
    assert smooth([3.0, 3.0]) == pytest.approx([3, 3])
    assert smooth([1.0, 2.0]) == pytest.approx([1, 2.9 / 1.9])
    assert smooth([1.0, math.nan, 1.0]) == [1]


def test_divergence():
    assert has_diverged([1.0, math.inf])
    assert has_diverged([1.0, 1.0, 99.0])
    assert not has_diverged([2.0, 1.0, 2.0])


def test_a_network_is_trained_at_rising_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(range_test, "LOWEST", 1e-4)
    config = Config(
        data=DataConfig(image_size=8, cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(widths=(4,), blocks=(0,)),
        batch_size=16,
    )
    found = run_range_test(config, tmp_path / "run", steps=40)
    assert found.rates[0] == 1e-4
    assert len(found.rates) == len(found.losses) <= 40
    assert found.losses[0] == pytest.approx(math.log(10), abs=1)
    assert not (tmp_path / "run").exists()


def test_the_plot_is_a_page_without_network(tmp_path):
    write_range_page([1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], steepest=1e-2, lowest=1e-2, path=tmp_path / "a" / "p.html")
    page = (tmp_path / "a" / "p.html").read_text()
    assert page.count("<svg") == page.count('<figure role="img" aria-label="') == 1
    assert "fastest at 0.01" in page.replace("\n", " ")
    assert "//" not in page.replace("http://www.w3.org", "")
