"""Decoding one picture into RGB, the way a viewer would show it."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from jaxcnn.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused: 240 MB decoded. Below the 89 million at which Pillow warns of a decompression bomb."""

DECODER = 3
"""Raise it when the same file would become other pixels: those in the cache are then decoded anew, and those that older
runs have recorded are no longer compared."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Still pictures only: some other formats of Pillow start programs (EPS) or draw with the machine's own fonts (WMF)."""

DRAFT = 4
"""A JPEG is decoded at a fraction of its size if no side falls below so many times that of the result.

A decoder that leaves out the finest waves averages areas, as the resize would have done, in an eighth of the time. The
pictures differ by a sixth of a level on average. The server does the same: a model is to see what it was trained on.
"""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation."""

# Pillow's warning of a decompression bomb comes before its error; to us both are one error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode(encoded: bytes, *, size: int, where: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes a picture to RGB and stretches it to `size` x `size` pixels with a bicubic filter.

    The EXIF orientation is applied; transparent parts become white; gray of up to 16 bits keeps its whole range; of an
    animation the first frame is taken. Embedded colour profiles are not applied. A large JPEG is decoded at a half, a
    quarter or an eighth of its size.

    Args:
      encoded: the bytes of the file.
      size: side in pixels of the result.
      where: names the picture in messages.

    Raises:
      UserError: no picture, cut short, damaged, larger than `MAX_PIXELS`, or of a kind that has no plain RGB form.
    """
    with _errors_of(where):
        if not encoded:
            raise ValueError("empty file")
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(image)
            rgb = _upright(to_rgb(_load(image, size)), image)
        return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))


def prepare(image: Image.Image, *, size: int, where: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Converts a picture that Pillow has opened, as `decode` does; a large JPEG is decoded at its full size.

    Args:
      image: the picture; its pixels are loaded if they were not.
      size: side of the result in pixels.
      where: names the picture in error messages.

    Raises:
      UserError: as `decode`.
    """
    with _errors_of(where):
        _check_pixels(image)
        image.load()
        return np.asarray(_upright(to_rgb(image), image).resize((size, size), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _errors_of(where: str) -> Iterator[None]:
    """Turns every error of Pillow into a UserError that names the picture."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where} has more than {MAX_PIXELS:,} pixels; make it smaller or remove it") from error
    except Exception as error:  # Pillow's readers raise nearly every kind of error on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"none of {', '.join(FORMATS)}"
        raise UserError(f"{where} is no picture that can be read ({reason}); mend or remove it") from error


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _load(image: ImageFile.ImageFile, size: int) -> Image.Image:
    """Reads the pixels; those of a JPEG that is decoded at a fraction of its size are brought to `size` x `size`."""
    if image.format == "PNG" and "transparency" in image.info:
        _scale_transparent(image)
    whole = image.size
    drafted = image.draft(None, (DRAFT * size, DRAFT * size))
    image.load()  # here, where damage to the pixels is not taken for damage to the metadata
    if drafted is None or image.size == whole:
        return image
    # Its last row and column may stand for less than a pixel: `drafted` has what the whole picture comes to.
    return image.resize((size, size), Image.Resampling.BICUBIC, box=drafted[1])


def _scale_transparent(png: ImageFile.ImageFile) -> None:
    """Gives the transparent level or colour of a PNG as many bits as its pixels will have; Pillow keeps those it has.

    Of 16-bit RGB it reads the upper 8 bits of the pixels.
    """
    kind, transparent = png.tile[0].args, png.info["transparency"]
    if kind in ("L;2", "L;4"):
        png.info["transparency"] = transparent * (85 if kind == "L;2" else 17)
    elif kind == "RGB;16B":
        png.info["transparency"] = tuple(level >> 8 for level in transparent)


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turned as the EXIF orientation of `image` says; as it is stored where the metadata cannot be read."""
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # any kind of error, from damage that no viewer minds
        return rgb
    return rgb if method is None else rgb.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB.

    Raises:
      ValueError: a mode that has no plain RGB form, such as floating point.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _to_8_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        (bits,) = _tags(image).get(ExifTags.Base.BitsPerSample, (32,))
        raise ValueError(f"{bits} bits for each pixel{', signed' * (bits == 16)}; save it with 8 or 16, unsigned")
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray of up to 16 bits in mode L, white where it is transparent; Pillow's own conversion clips all above 255."""
    (bits,) = _tags(image).get(ExifTags.Base.BitsPerSample, (16,))
    levels = np.asarray(image)
    gray = (levels / ((2**bits - 1) / 255)).round().astype(np.uint8)
    if _tags(image).get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        gray = 255 - gray
    if "transparency" in image.info:
        gray[levels == image.info["transparency"]] = 255
    return Image.fromarray(gray)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """What a TIFF says about its pixels; other formats, nothing."""
    return getattr(image, "tag_v2", {})
