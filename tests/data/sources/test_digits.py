import numpy as np
from sklearn.datasets import load_digits

from jaxcnn.data.decoding import decode
from jaxcnn.data.sources.digits import digits_source


def test_all_digits_in_their_whole_range():
    opened, bunch = digits_source().open(), load_digits()
    assert opened.names == tuple("0123456789")
    assert opened.license == "CC BY 4.0"
    assert len(opened.train) == 1797
    assert len(opened.validation) == 0
    for index in (0, 1, 1796):
        pixels = decode(opened.train[index].encoded, size=8, where="x")
        assert (pixels == np.rint(bunch.images[index] * 255 / 16)[..., None]).all()
        assert opened.train[index].label == bunch.target[index]
