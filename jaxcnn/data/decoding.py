"""Decodes one picture to RGB, the way a viewer shows it."""

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from jaxcnn.cores import count_cores
from jaxcnn.data.crops import Crop
from jaxcnn.data.heif import START, decode_heif, is_heif
from jaxcnn.data.pictures import FORMATS
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused: this many are 240 MB decoded."""

DECODER = 3
"""Version of the decoder. Raise it when the same file would become other pixels: the cache is then decoded again, and
fingerprints of earlier versions are no longer compared by their pixels."""

DRAFT = 4
"""A JPEG is decoded at a fraction of its size if no side falls below this many times the square that is kept.

A decoder that leaves out the highest frequencies averages areas, as the resize would do, in an eighth of the time. The
pictures differ by a sixth of a level on average. The server does the same, so that a model sees what it was trained on.
"""

THREADS = 16
"""Most threads that decode; each holds a whole picture in memory."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each EXIF orientation."""


def decoding_threads() -> int:
    """Returns the number of cores that this process may use, but at most `THREADS`.

    Threads, not processes: Pillow releases the interpreter lock while it decodes and resizes.
    """
    return min(count_cores(), THREADS)


class Decoded(NamedTuple):
    """A decoded picture, and what its file says about it.

    Attributes:
      pixels: the square that is kept, RGB.
      width: width in pixels of the picture in the file, before it is turned.
      height: its height.
      format: Pillow's name of its format.
    """

    pixels: UInt8[np.ndarray, "stored stored 3"]
    width: int
    height: int
    format: str


def decode(
    encoded: bytes, *, size: int, resize: Resize = STRETCH, where: str
) -> UInt8[np.ndarray, "{resize.stored(size)} {resize.stored(size)} 3"]:
    """Decodes a picture to RGB and resizes it to the square that is kept for a model of `size` x `size` pixels.

    The EXIF orientation is applied; transparent parts become white; gray of up to 16 bits keeps its range; animations
    give their first frame. Embedded colour profiles are not applied. A large JPEG is decoded at a half, a quarter or an
    eighth of its size. Several threads may call this at once. Pillow's warnings, such as those about damaged metadata,
    are ignored, whatever the warning filters are.

    Args:
      encoded: content of the file.
      size: side of the model's input in pixels.
      resize: how the picture becomes a square.
      where: names the picture in error messages.

    Raises:
      UserError: the file is not a picture, is truncated or damaged, has more than `MAX_PIXELS`, or has pixels that
        cannot be shown as RGB.
    """
    return decode_file(encoded, size=size, resize=resize, where=where).pixels


def decode_file(encoded: bytes, *, size: int, resize: Resize = STRETCH, where: str) -> Decoded:
    """Does what `decode` does, and also returns the size and the format of the picture.

    Raises:
      UserError: as `decode`.
    """
    with _open(encoded, where) as image:
        width, height = image.size
        rgb = _upright(_to_rgb(_load(image, size, resize)), image)
        pixels = np.asarray(resize.pad(resize.scale(rgb, size), size))
        return Decoded(pixels, width, height, image.format or "")


def decode_crop(
    encoded: bytes, crop: Crop, *, size: int, resize: Resize = STRETCH, where: str
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Decodes a random crop of a picture to RGB and resizes it to `size` x `size` pixels.

    A JPEG is decoded at a fraction of its size as long as the crop stays `DRAFT` times as large as the result.

    Args:
      encoded: content of the file.
      crop: which part of the picture.
      size: side of the result in pixels.
      resize: how whole pictures become squares; see `Crop.box`.
      where: names the picture in error messages.

    Raises:
      UserError: as `decode`.
    """
    with _open(encoded, where) as image:
        if isinstance(image, PngImagePlugin.PngImageFile):
            _scale_transparent(image)
        least = math.ceil(DRAFT * size / crop.least_side)
        image.draft(None, (least, least))
        image.load()
        # The crop is placed in the picture as a viewer sees it.
        rgb = _upright(_to_rgb(image), image)
        return np.asarray(resize.cut(rgb, crop.box(*rgb.size, mode=resize.mode), size))


def is_picture(encoded: bytes | io.BufferedReader) -> bool:
    """Returns whether the content of a file begins like a picture of a format that is read; it may still be damaged.

    No more of an open file is read than that takes.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with warnings_ignored, Image.open(file, formats=FORMATS):
            return True
    except UnidentifiedImageError:
        file.seek(0)
        return is_heif(file.read(START))
    except Exception:  # Pillow's readers raise nearly every kind of error on damaged files
        return True


def prepare(
    image: Image.Image, *, size: int, resize: Resize = STRETCH, where: str
) -> UInt8[np.ndarray, "{resize.stored(size)} {resize.stored(size)} 3"]:
    """Converts a picture that Pillow has opened, as `decode` does; a large JPEG is decoded at its full size.

    Args:
      image: the picture; its pixels are loaded if they were not.
      size: side of the model's input in pixels.
      resize: how the picture becomes a square.
      where: names the picture in error messages.

    Raises:
      UserError: as `decode`.
    """
    with _pillow_errors(where):
        _check_pixels(image)
        image.load()
        rgb = _upright(_to_rgb(image), image)
        return np.asarray(resize.pad(resize.scale(rgb, size), size))


@contextlib.contextmanager
def _open(encoded: bytes, where: str) -> Iterator[Image.Image]:
    """Opens a file of at most `MAX_PIXELS`; errors inside the block become a UserError that names the picture."""
    with _pillow_errors(where):
        if not encoded:
            raise ValueError("empty file")
        if is_heif(encoded):
            yield decode_heif(encoded, max_pixels=MAX_PIXELS, where=where)
            return
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_pixels(image)
            yield image


@contextlib.contextmanager
def _pillow_errors(where: str) -> Iterator[None]:
    """Turns every error of Pillow into a UserError that names the picture, and ignores Pillow's warnings."""
    try:
        with warnings_ignored:
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{where} has more than {MAX_PIXELS:,} pixels; make it smaller or remove it") from error
    except Exception as error:  # Pillow's readers raise nearly every kind of error on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"the format is none of {', '.join(FORMATS)}"
        raise UserError(f"{where} is not a picture that can be read ({reason}); repair or remove it") from error


def _check_pixels(image: Image.Image) -> None:
    """Refuses a picture by the size in its header, before its pixels are read."""
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


class _WarningFilter:
    """Ignores Pillow's warnings while at least one thread decodes.

    `warnings` keeps one list of filters for all threads: each thread cannot set and restore it alone. The first thread
    to enter sets the filter, the last to leave restores the list.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._saved = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._saved.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._threads += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._saved.close()


warnings_ignored = _WarningFilter()
"""A context in which Pillow's warnings are ignored; entering it again inside of it costs nothing."""


def _load(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """Reads the pixels; a JPEG that is decoded at a fraction of its size is scaled at once."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        _scale_transparent(image)
    whole = image.size
    # Only JPEGs can be decoded at a fraction of their size; `draft` returns None for other formats.
    least = DRAFT * resize.stored(size)
    drafted = image.draft(None, (least, least))
    image.load()  # Before the metadata are read, so that an error here is one of the pixels
    if drafted is None or image.size == whole:
        return image
    # The last row and column may stand for less than a pixel; `drafted` has the exact extent of the whole picture.
    return resize.scale(image, size, extent=drafted[1][2:])


def _scale_transparent(png: PngImagePlugin.PngImageFile) -> None:
    """Gives the transparent level or colour of a PNG the bit depth that Pillow gives its pixels.

    Pillow scales pixels of 2 and 4 bits to 8, and reads only the upper 8 bits of 16-bit RGB, but leaves the transparent
    level unchanged.
    """
    kind, transparent = png.tile[0].args, png.info.get("transparency")
    if transparent is None:
        return
    if kind in ("L;2", "L;4"):
        png.info["transparency"] = transparent * (85 if kind == "L;2" else 17)
    elif kind == "RGB;16B":
        png.info["transparency"] = tuple(level >> 8 for level in transparent)


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    """Turns `rgb` as the EXIF orientation of `image` says, or not at all if the metadata cannot be read."""
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged metadata raise any kind of error, and viewers show the picture all the same
        return rgb
    return rgb if method is None else rgb.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to mode RGB; one that has it is returned as it is, since a copy takes a twentieth of the time.

    Raises:
      ValueError: the mode cannot be shown as RGB, such as floating point.
    """
    # Gray of more than 8 bits, of which Pillow would keep the lowest levels alone.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _to_8_bits(image).convert("RGB")
    if image.mode in ("I", "F"):
        (bits,) = _tags(image).get(ExifTags.Base.BitsPerSample, (32,))
        raise ValueError(f"{bits} bits for each pixel{', signed' * (bits == 16)}; save it with 8 or 16, unsigned")
    # Viewers show transparent pictures on a page, which is white.
    if image.mode == "La":  # Premultiplied alpha, which Pillow converts to LA alone
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts gray of up to 16 bits to mode L, with white for transparent pixels.

    Pillow's own conversion clips every level above 255.
    """
    (bits,) = _tags(image).get(ExifTags.Base.BitsPerSample, (16,))
    levels = np.asarray(image)
    gray = (levels / ((2**bits - 1) / 255)).round().astype(np.uint8)
    if _tags(image).get(ExifTags.Base.PhotometricInterpretation) == 0:  # White is zero
        gray = 255 - gray
    if "transparency" in image.info:
        gray[levels == image.info["transparency"]] = 255
    return Image.fromarray(gray)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Returns the tags of a TIFF, which describe its pixels; empty for other formats."""
    return getattr(image, "tag_v2", {})
