"""A bound on the pieces of a picture file: parsers in Python take microseconds for each, and a piece may be 4 bytes."""

from server.errors import PictureError

# Programs write chunks of kilobytes.
_CHUNK_BYTES = 1000


class ChunkLimit:
    """How many chunks, segments, blocks or entries of tables a file may still have."""

    def __init__(self, size: int, *, least: int = 3000) -> None:
        """Begins to count.

        Args:
          size: length of the file in bytes.
          least: how many chunks a small file may have.
        """
        self._left = max(least, 1000 + size // _CHUNK_BYTES)

    def take(self, count: int = 1) -> None:
        """Counts further chunks.

        Raises:
          PictureError: there are too many.
        """
        self._left -= count
        if self._left < 0:
            raise PictureError("The picture file consists of far too many chunks: save it again with another program")
