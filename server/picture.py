"""From the bytes of a picture file to the array that the model takes, exactly as in training."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, GifImagePlugin, Image, ImageFile, UnidentifiedImageError

from server import exif, jpeg, png
from server.chunks import ChunkLimit
from server.errors import PictureError
from server.resize import Resize, place

_STRETCH = Resize()

# The formats that browsers show, besides GIF. Every further format is more code that reads hostile bytes (Pillow runs
# Ghostscript for EPS). AVIF is left out: its parser needs 3 s for 400 KB before there is a size to check, because it
# looks up each item among all, and that size is not the size of its frames, of which there may be thousands.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_GIF_SIGNATURES = (b"GIF87a", b"GIF89a")

# The limit of JPEG itself. Resizing keeps 32 bytes of coefficients per pixel of a side: 800 MB for 25,000,000 x 1.
_MAX_SIDE = 65_535

# A JPEG decoder that skips the highest frequencies averages areas, as the resize would. Down to pictures four times as
# large as the result, the two differ by a sixth of a level on average, and decoding takes an eighth of the time.
_DRAFT = 4

# A parser reads a few times for each chunk. XMP in a GIF is plain text, whose letters it takes for block lengths. For
# each further chunk Pillow copies all that it has read of a GIF's comment or a JPEG's EXIF data: 10 MB in the smallest
# chunks would take it a minute.
_MIN_READS = 10_000

# Pillow expands run lengths in Python: .5 microseconds per byte of the file, up to .2 per pixel.
_MAX_RUN_LENGTHS = 3_000_000

# Memory that decoding takes for the smallest picture: Huffman tables, colour tables, buffers.
_FIXED_BYTES = 1_000_000

# Rows of a picture whose transparency is removed together.
_ROWS = 64

# Pillow takes microseconds for each entry of EXIF data, and for each value of a tag that it decodes.
_MAX_ENTRIES = 3000
_MAX_VALUES = 1000

# The operation that undoes each EXIF orientation. Orientations from 5 on swap width and height.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _BoundedFile(BytesIO):
    """A picture file that allows only so many reads, as a parser reads a few times for each chunk, segment or block."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # A BMP has no chunks, and Pillow reads its run lengths byte by byte.
        self._limit = ChunkLimit(len(data), least=_MIN_READS + len(data) * data.startswith(b"BM"))

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads, as the base class does.

        Raises:
          PictureError: there were too many reads.
        """
        self._limit.take()
        return super().read(size)


@functools.cache
def _first_gif_frame() -> type[GifImagePlugin.GifImageFile]:
    """Returns the class of GIFs whose first frame is all that is decoded.

    For the second frame Pillow keeps what replaces the first one, a byte for each pixel, from the moment it opens the
    file: the 43 bytes of a file would take 178 MB before there is a size to check.
    """

    # In a function, as pdoc cannot resolve what a class of a module inherits from Pillow.
    class FirstFrame(GifImagePlugin.GifImageFile):
        @property
        def disposal_method(self) -> int:
            return 0  # Nothing replaces this frame before the next.

        @disposal_method.setter
        def disposal_method(self, method: int) -> None:
            pass

    return FirstFrame


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What decoding takes at most, as far as the header of a file reveals it."""

    pixels: int
    """Time, in pixels of a PNG: 25 ns each on one core of a server of 2024, and up to 60 on a busy one."""
    bytes: int
    """Memory."""

    def is_within(self, limit: "Cost") -> bool:
        """Whether neither time nor memory exceeds a limit."""
        return self.pixels <= limit.pixels and self.bytes <= limit.bytes


class Picture:
    """A picture file whose header has been read, but not its pixels.

    Attributes:
      cost: what `decode` will take.
    """

    def __init__(self, data: bytes, *, height: int, width: int, resize: Resize = _STRETCH, max_pixels: int) -> None:
        """Reads the header, and refuses what would take too much memory or time.

        Args:
          data: the bytes of a JPEG, PNG, WebP, GIF or BMP file.
          height: height of the result in pixels.
          width: width of the result in pixels.
          resize: how the picture becomes that size.
          max_pixels: largest width times height.

        Raises:
          PictureError: the bytes are in no supported format or damaged, or have too many pixels.
        """
        if not data:
            raise PictureError("The picture is empty (0 bytes): send the bytes of a picture file")
        self._height, self._width, self._resize = height, width, resize
        with _Explained():
            self._image, scans = _open(data, max_pixels)
            # A JPEG may be decoded at a half, a quarter or an eighth of its size, if no side gets too small by that.
            draft = _DRAFT * resize.least(height, width)
            whole = self._image.size
            drafted = self._image.draft(None, (draft, draft))
            # The width and height that the whole picture covers in the reduced one, whose last row and column may be
            # fractions of a pixel.
            self._extent = None if drafted is None or self._image.size == whole else drafted[1][2:]
            self.cost = _cost(self._image, whole, scans, columns=max(width, resize.least(height, width)))

    def decode(self) -> npt.NDArray[np.uint8]:
        """Decodes the picture and crops, pads or stretches it to the model's size. Call it once.

        The result is RGB as a viewer shows it: upright by its EXIF orientation, CMYK and gray converted, 16-bit gray
        scaled to 8 bits, transparency over white, the first frame of an animation. Colour profiles are ignored.

        Returns:
          uint8 [height, width, 3].

        Raises:
          PictureError: the file is damaged or truncated.
        """
        with _Explained():
            image: Image.Image = self._image
            # Decode the pixels first: later, damage to them would be taken for damage to the EXIF data.
            image.load()
            orientation = _orientation(image)
            # The extent is in the coordinates of the file, so scale a reduced JPEG before turning it upright.
            height, width = self._height, self._width
            if self._extent is not None:
                rows, columns = (width, height) if orientation >= 5 else (height, width)
                image = self._resize.scale(image, height=rows, width=columns, extent=self._extent)
            if orientation in _UPRIGHT:
                image = image.transpose(_UPRIGHT[orientation])
            image = self._resize.scale(_to_rgb(image), height=height, width=width)
            return np.asarray(place(image, height=height, width=width))


class _Explained:
    """Turns whatever Pillow raises into a `PictureError`, unless the server is out of memory.

    Not a generator: its frame would be in the traceback of the error that it holds, and the cycle would keep the
    picture in memory until the next full garbage collection.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, PictureError | MemoryError):
            return
        if isinstance(error, UnidentifiedImageError):
            raise PictureError(
                "This is not a picture in a supported format: send JPEG, PNG, WebP, GIF or BMP"
            ) from None
        if isinstance(error, Exception):
            # Pillow's parsers raise whatever exception damaged bytes lead to.
            raise PictureError("The picture is damaged or truncated: send the complete file") from error


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignores Pillow's warnings in all threads while the context lasts, which is as long as the server runs.

    Pillow warns about damaged metadata and quotes the file: a client could fill the log, and Python's record of the
    warnings already shown.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open(data: bytes, max_pixels: int) -> tuple[ImageFile.ImageFile, int]:
    """Reads the header of a file and checks it; returns the picture, and the number of scans if it is a JPEG."""
    limit = f"scale it down to at most {max_pixels} pixels in total and {_MAX_SIDE} on a side"
    scans = jpeg.count_scans(data) if data.startswith(jpeg.SIGNATURE) else 0
    if data.startswith(png.SIGNATURE):
        data = png.strip(data)
    if data.startswith(b"BM"):
        _check_palette(data)
    file = _BoundedFile(data)
    try:
        image = _first_gif_frame()(file) if data.startswith(_GIF_SIGNATURES) else Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(f"The picture has far too many pixels: {limit}") from error
    # Refuse what would take too much memory or time.
    if image.width * image.height > max_pixels or max(image.size) > _MAX_SIDE:
        raise PictureError(f"The picture has {image.width} x {image.height} pixels: {limit}")
    if image.format == "BMP" and image.tile[0].codec_name == "bmp_rle":
        _check_run_lengths(len(data), image.width * image.height)
    if image.format == "PNG" and "transparency" in image.info:
        _scale_transparency(image)
    return image, scans


def _cost(image: ImageFile.ImageFile, whole: tuple[int, int], scans: int, *, columns: int) -> Cost:
    """Returns what a picture costs at most, by measurements with every format.

    Args:
      image: the picture, whose size is the one that it is decoded at.
      whole: its size in the file.
      scans: number of scans of a JPEG.
      columns: width that it is scaled to.
    """
    pixels, decoded = whole[0] * whole[1], image.width * image.height
    if image.format in ("JPEG", "MPO"):
        # All coefficients are in memory at once if there are several scans. Each scan visits all of them.
        coefficients = 2 * len(image.getbands()) * pixels if scans > 1 or "progression" in image.info else 0
        work, memory = decoded + pixels // 8 + pixels * scans // 20, coefficients + 13 * decoded
    elif image.format == "WEBP":
        # The decoder keeps two canvases and the bits of one frame; Pillow copies the canvas.
        work, memory = 2 * pixels, 21 * pixels
    else:
        work, memory = pixels, (18 if image.mode.startswith("I;16") else 13) * pixels
        if image.has_transparency_data:
            work *= 2
    # Scaling one side at a time has an intermediate result, for which Pillow begins with the longer side.
    scaled = 4 * columns * min(image.size) + 8 * columns * columns
    return Cost(pixels=work, bytes=_FIXED_BYTES + memory + scaled)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scales a PNG's transparent level or colour to the depth that Pillow decodes to; Pillow leaves it unscaled.

    Pillow keeps the upper 8 bits of 16-bit RGB, so that other colours may become the transparent one too.
    """
    raw_mode, transparent = image.tile[0].args, image.info["transparency"]
    if raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = transparent * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in transparent)


def _check_palette(data: bytes) -> None:
    """Refuses a BMP that has more colours than its pixels can name: Pillow makes a list of them, 2 MB for 65,536."""
    size, bits, colors = (int.from_bytes(data[start:end], "little") for start, end in ((14, 18), (28, 30), (46, 50)))
    # A header of 12 bytes does not say how many colours there are; pixels of more than 8 bits are colours themselves.
    if size > 12 and bits <= 8 and colors > 2**bits:
        raise PictureError("The picture is a BMP with more colours than it can use: save it as PNG")


def _check_run_lengths(size: int, pixels: int) -> None:
    if max(size, pixels) > _MAX_RUN_LENGTHS:
        raise PictureError(
            f"The picture is a run-length encoded BMP of more than {_MAX_RUN_LENGTHS} bytes or pixels: save it as PNG"
        )


def _orientation(image: Image.Image) -> int:
    try:
        # Pillow decodes all values of the tag, of which it returns the first, as in training.
        data = _exif(image.info)
        if exif.count_entries(data) > _MAX_ENTRIES:
            return 1
        if exif.count_values(data).get(ExifTags.Base.Orientation, 1) > _MAX_VALUES:
            return 1
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _UPRIGHT else 1
    except Exception:
        # Viewers ignore damaged EXIF data.
        return 1


def _exif(info: dict[str | tuple[int, int], Any]) -> bytes:
    """Returns the EXIF data that Pillow will read; some programs write them into the texts of a PNG."""
    if "exif" in info or png.RAW_PROFILE not in info:
        return bytes(info.get("exif", b""))
    # As Pillow parses it.
    return bytes.fromhex("".join(info[png.RAW_PROFILE].split("\n")[3:]))


def _to_rgb(image: Image.Image) -> Image.Image:
    # 16-bit gray: Pillow's convert() would clip it at 255.
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        gray = (levels.astype(np.uint32) + 128) // 257
        if "transparency" in image.info:
            gray[levels == image.info["transparency"]] = 255
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Puts a picture with transparency over white, a few rows at a time: all at once takes 16 bytes for each pixel."""
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height))).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return result
