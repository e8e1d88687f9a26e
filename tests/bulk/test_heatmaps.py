"""Heatmaps as pictures. What they show is tested with the command that writes them."""

import numpy as np
import pytest

from jaxcnn.bulk.heatmaps import Heatmaps
from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.errors import UserError


def test_a_heatmap_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "heat").touch()
    heatmaps, image, heatmap = Heatmaps(tmp_path / "heat"), np.zeros((8, 8, 3), np.uint8), np.ones((2, 2), np.float32)
    message = f"the heatmap {tmp_path}/heat/photos/a.jpg.png cannot be written: Not a directory; give other --heatmaps"
    with pytest.raises(UserError) as caught:
        heatmaps.save(PictureFile("photos/a.jpg"), image, heatmap)
    assert str(caught.value) == message
