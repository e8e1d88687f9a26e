"""From the bytes of a picture file to the array the model takes, exactly as in training."""

import re
import warnings
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from server.errors import PictureError

# What browsers show. Every further format is more code that meets hostile bytes (Pillow runs Ghostscript for EPS).
# AVIF is left out: 400 KB take its parser 3 s before there is a size to look at, as it seeks each item among all, and
# the size is not that of its frames, of which there may be thousands.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# JPEG's own limit. Resizing keeps 32 bytes of coefficients for each pixel of a side: 800 MB for 25,000,000 x 1.
_MAX_SIDE = 65_535

# Pillow warns about damaged metadata, with text from the file: a client could fill the log and the memory of what was
# warned about before.
warnings.filterwarnings("ignore", module=r"PIL\.")

# A JPEG decoder that leaves out the finest waves averages areas, as the resize would have done. Down to pictures four
# times as large as the result the two differ by a sixth of a level on average, and this takes an eighth of the time.
_DRAFT = 4

# Programs write pieces of kilobytes, but of a GIF's XMP, which is plain text, a parser takes letters for lengths. For
# each further piece Pillow copies all that it has of a GIF's comment, or of a JPEG's EXIF data: 10 MB in the smallest
# ones would take it a minute.
_PIECE_BYTES = 1000
_MIN_READS = 10_000

# Pillow expands run lengths in Python: each of these bytes takes .5 microseconds, each of these pixels up to .2.
_MAX_RUN_LENGTHS = 3_000_000

# Programs write a dozen. Each takes 40 ms for 25 megapixels however short it is: 64 bytes may do.
_MAX_SCANS = 100

# The markers of a JPEG that a segment follows, and its end.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")

# Those of frames in arithmetic coding, which hardly any program writes. A scan without data still costs a decision for
# each coefficient of the picture: 26 KB may take 5 minutes.
_ARITHMETIC = (b"\xc9", b"\xca", b"\xcb", b"\xcd", b"\xce", b"\xcf")

# What undoes each EXIF orientation; from 5 on the sides change places.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _File(BytesIO):
    """A picture file that can only be read for as long as the pieces it is made of are not far too many."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # A BMP has no pieces, and Pillow reads its run lengths byte by byte.
        piece = 1 if data.startswith(b"BM") else _PIECE_BYTES
        self._reads = max(_MIN_READS, 1000 + len(data) // piece)

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads; a format's parser does so a few times for each chunk, segment or block.

        Raises:
            PictureError: once too often.
        """
        self._reads -= 1
        if self._reads < 0:
            raise PictureError("the picture is a file of far too many pieces: save it anew")
        return super().read(size)


def decode(data: bytes, *, height: int, width: int, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decodes a picture and stretches it (bicubic) to the model's size.

    It becomes RGB as a viewer shows it: turned upright by its EXIF orientation, CMYK and gray converted, 16-bit
    gray scaled to 8 bits, transparency laid over white; of an animation the first frame. Colour profiles are ignored.

    Args:
        data: the bytes of a JPEG, PNG, WebP, GIF or BMP file.
        height: of the result.
        width: of the result.
        max_pixels: largest width times height, checked before the pixels are decoded.

    Returns:
        uint8 [height, width, 3].

    Raises:
        PictureError: the bytes are no such file, are damaged or truncated, or hold too many pixels.
    """
    if not data:
        raise PictureError("the picture is empty (0 bytes)")
    try:
        image, part = _open(data, max_pixels, draft=_DRAFT * max(height, width))
        orientation = _orientation(image)
        if part is not None:
            size = (height, width) if orientation >= 5 else (width, height)
            image = image.resize(size, Image.Resampling.BICUBIC, box=part)
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        image = _to_rgb(image)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("this is not a picture that can be read: send JPEG, PNG, WebP, GIF or BMP") from None
    except Exception as error:  # Pillow lets through whatever a format's parser stumbles over.
        raise PictureError("the picture is damaged or truncated: send the whole file again") from error


def _open(data: bytes, max_pixels: int, *, draft: int) -> tuple[Image.Image, tuple[float, float, float, float] | None]:
    """Reads the header, and the pixels if they are not too many.

    A JPEG is decoded at a half, a quarter or an eighth of its size if no side falls below `draft`.

    Returns:
        The picture, and which part of it is the picture if it was reduced: the last pixels may be of fractions.
    """
    limit = f"scale it down to at most {max_pixels} in all and {_MAX_SIDE} on a side"
    try:
        image = Image.open(_File(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(f"the picture has far too many pixels: {limit}") from error
    if image.width * image.height > max_pixels or max(image.size) > _MAX_SIDE:
        raise PictureError(f"the picture has {image.width} x {image.height} pixels: {limit}")
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(data)
    if image.format == "BMP" and image.tile[0].codec_name == "bmp_rle":
        _check_run_lengths(len(data), image.width * image.height)
    if image.format == "PNG" and "transparency" in image.info:
        _fit_transparent(image)
    whole = image.size
    drafted = image.draft(None, (draft, draft))
    image.load()  # Here, where damage to the pixels is not taken for damage to the EXIF data.
    return image, None if drafted is None or image.size == whole else drafted[1]


def _fit_transparent(png: ImageFile.ImageFile) -> None:
    """Gives a PNG's transparent level or colour the bits that its pixels will have; Pillow leaves it those of the file.

    Of 16-bit RGB Pillow keeps the upper 8 bits, by which other colours may be the transparent one, too.
    """
    raw_mode, transparent = png.tile[0].args, png.info["transparency"]
    if raw_mode in ("L;2", "L;4"):
        png.info["transparency"] = transparent * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B":
        png.info["transparency"] = tuple(each >> 8 for each in transparent)


def _check_jpeg(data: bytes) -> None:
    """Goes over a JPEG file from marker to marker; what lies beyond its end, such as a film, is left out.

    Raises:
        PictureError: it goes over its pixels too often, or in a way that takes too long.
    """
    scans, start = 0, 2
    while (marker := _MARKER.search(data, start)) and marker[1] != b"\xd9":
        if marker[1] in _ARITHMETIC:
            raise PictureError("the picture is an arithmetic-coded JPEG: save it anew")
        scans += marker[1] == b"\xda"
        if scans > _MAX_SCANS:
            raise PictureError(f"the picture is a JPEG of more than {_MAX_SCANS} scans: save it anew")
        start = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def _check_run_lengths(size: int, pixels: int) -> None:
    if max(size, pixels) > _MAX_RUN_LENGTHS:
        raise PictureError(
            f"the picture is a BMP of run lengths with more than {_MAX_RUN_LENGTHS} bytes or pixels: save it anew"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF: viewers show such a picture as it is stored.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip at 255.
        levels = np.asarray(image)
        gray = (levels.astype(np.uint32) + 128) // 257
        if "transparency" in image.info:
            gray[levels == image.info["transparency"]] = 255
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
