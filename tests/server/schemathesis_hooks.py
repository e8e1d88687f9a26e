"""What a JSON schema cannot express of the valid requests that schemathesis makes: that bytes are a picture."""

import base64
from io import BytesIO

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def encode(size: tuple[int, int], kind: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(stream, kind)
    return stream.getvalue()


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
PICTURES = st.builds(encode, SIZES, st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))

schemathesis.openapi.format("binary", PICTURES)
schemathesis.openapi.format("base64-picture", PICTURES.map(lambda data: base64.b64encode(data).decode()))
