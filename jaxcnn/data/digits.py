"""The embedded default: the handwritten digits that come inside scikit-learn."""

import io

import numpy as np
from PIL import Image

from jaxcnn.data.source import Opened, Picture


def open_digits() -> Opened:
    """1,797 real 8x8 gray pictures of ten digits, without a validation split; needs no network.

    The test set of E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49.
    """
    from sklearn.datasets import load_digits  # a second to import; not needed once the pictures are in the cache

    bunch = load_digits()
    pictures = [
        Picture(where=f"digit {index}", encoded=_encode(gray), label=int(label))
        for index, (gray, label) in enumerate(zip(bunch.images, bunch.target, strict=True))
    ]
    return Opened(
        name="digits",
        names=tuple(str(digit) for digit in bunch.target_names),
        license="CC BY 4.0",
        train=pictures,
        validation=[],
    )


def _encode(gray: np.ndarray) -> bytes:
    """A PNG of an array of gray levels from 0 to 16."""
    file = io.BytesIO()
    Image.fromarray((gray * (255 / 16)).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
