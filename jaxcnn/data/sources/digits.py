"""The embedded default: the handwritten digits that scikit-learn ships."""

import io

import numpy as np
from jaxtyping import Float64
from PIL import Image

from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import Picture
from jaxcnn.data.source import Source


def digits_source() -> Source:
    """Returns 1,797 scanned digits, 8x8 pixels in gray, without a validation split; needs no network.

    The test set of E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49.
    """
    return Source(key="digits", open=_open)


def _open() -> EncodedDataset:
    # Imported late: it takes a second, and is not needed once the pictures are in the cache.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return EncodedDataset(
        name="digits",
        names=tuple(str(digit) for digit in bunch.target_names),
        license="CC BY 4.0",
        train=[
            Picture(where=f"digit {index}", encoded=_encode(gray), label=int(label))
            for index, (gray, label) in enumerate(zip(bunch.images, bunch.target, strict=True))
        ],
        validation=[],
    )


def _encode(gray: Float64[np.ndarray, "height width"]) -> bytes:
    """Encodes gray levels between 0 and 16 as PNG."""
    file = io.BytesIO()
    Image.fromarray((gray * (255 / 16)).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
