"""The benchmark of the loader: it takes the steps of a preset."""

import numpy as np
import pytest

from jaxcnn.data.split import Split
from tests.bench import loader


@pytest.mark.run
def test_the_share_of_the_time_that_steps_wait_is_measured():
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    split = Split(images, np.arange(32, dtype=np.int32))
    assert 0 <= loader.train("digits", split, batch=8, side=8, steps=2) < 1
