"""HEIC pictures, as iPhones take them: Pillow does not read them, the optional package pillow-heif does."""

import io
import re

from PIL import Image

from jaxcnn.errors import UserError
from jaxcnn.extras import install_command

ENDINGS = (".heic", ".heif", ".hif")
"""Endings of their files."""

START = 64
"""First bytes of a file that say what it is."""

HEVC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
"""Brands of files whose pictures are compressed with HEVC (ISO/IEC 23008-12, annex B)."""

EXTENT = re.compile(rb"ispe\0{4}(.{4})(.{4})", re.DOTALL)
"""A box with the width and the height of a picture as it is compressed: a viewer may show a part of it."""


def is_heif(encoded: bytes) -> bool:
    """Returns whether the content of a file, or its first `START` bytes, begins like a HEIC picture."""
    # A box of the type `ftyp` has the first brand at byte 8, and further ones from byte 16 on.
    brands = encoded[8 : min(int.from_bytes(encoded[:4]), START)]
    return encoded[4:8] == b"ftyp" and any(brands[at : at + 4] in HEVC for at in range(0, len(brands), 4))


def decode_heif(encoded: bytes, *, max_pixels: int, where: str) -> Image.Image:
    """Decodes the primary picture of a HEIC file; the result is upright.

    The package is not registered with Pillow, which would then read HEIC in every part of a program, and decode a
    thumbnail in the file where a smaller size is asked for.

    Args:
      encoded: content of the file.
      max_pixels: larger pictures are refused before they are decoded.
      where: names the picture in error messages.

    Raises:
      UserError: pillow-heif is not installed.
      DecompressionBombError: the picture has more than `max_pixels`.
      Exception: the file is damaged.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError(
            f"{where} is HEIC, which needs pillow-heif; run: {install_command('heic')}, or make a JPEG of it"
        ) from error
    # The reader refuses pictures that are larger than these boxes say.
    if any(int.from_bytes(width) * int.from_bytes(height) > max_pixels for width, height in EXTENT.findall(encoded)):
        raise Image.DecompressionBombError
    # This turns it, and takes away the EXIF orientation.
    image: Image.Image = pillow_heif.open_heif(io.BytesIO(encoded)).to_pillow()
    image.format = "HEIF"
    return image
