"""Heatmaps as pictures. What they show is tested with the command that writes them."""

import numpy as np
import pytest

from jaxcnn.bulk.heatmaps import Heatmaps
from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.errors import UserError


@pytest.mark.parametrize("letter", ["x", "\N{HIRAGANA LETTER A}"])
def test_names_of_heatmaps_fit_the_system(tmp_path, letter):
    name = letter * (251 // len(letter.encode()))
    pictures = [PictureFile(f"photos/{name}{ending}") for ending in (".png", ".bmp", "")]
    for file in pictures:
        Heatmaps(tmp_path).save(file, np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2), np.float32))
    paths = {Heatmaps(tmp_path).path(file.name) for file in pictures}
    assert len(paths) == 3
    assert paths == set((tmp_path / "photos").iterdir())


def test_a_heatmap_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "heat").touch()
    heatmaps, image, heatmap = Heatmaps(tmp_path / "heat"), np.zeros((8, 8, 3), np.uint8), np.ones((2, 2), np.float32)
    message = f"the heatmap {tmp_path}/heat/photos/a.jpg.png cannot be written: Not a directory; give other --heatmaps"
    with pytest.raises(UserError) as caught:
        heatmaps.save(PictureFile("photos/a.jpg"), image, heatmap)
    assert str(caught.value) == message
