"""Finds pictures that occur more than once: the same pixels, or nearly the same picture saved again or resized.

Near duplicates are found in two steps. The difference hash (N. Krawetz, "Kind of Like That", 2013) has 64 bits: whether
each cell of an 8x9 grid is darker than its right neighbour. Pairs whose hashes differ in at most `RADIUS` bits are then
compared by their thumbnails, since different pictures may have like hashes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

from jaxcnn.data.threads import map_ahead

ROWS, COLUMNS = 16, 18
"""Size of a thumbnail in pixels: two by two of them are a cell of the hash."""

RADIUS = 8
"""Most bits in which the hashes of near duplicates differ."""

LIKENESS = 0.985
"""Least correlation of the thumbnails of near duplicates, over all pixels and colours. JPEG files of one photograph
reach .999, copies with another brightness .99; neighbours in a series of photographs rarely .98."""

LEAST_SIDE = 32
"""Pictures with a shorter side are only compared exactly: different icons and digits may be nearly the same."""

LEAST_CONTRAST = 3.0
"""Pictures whose thumbnails vary less, in levels of 256, are only compared exactly: there is nothing to see in them."""

GRAY = 8
"""Largest difference between the colours of a pixel in a gray picture, in levels of 256; JPEG adds some."""

TILE = (64, 4096)
"""Hashes that are compared at once with as many others: what fits the cache of a core."""


class Look(NamedTuple):
    """What duplicates are found by.

    Attributes:
      digest: hash of the pixels; equal for equal pictures.
      bits: difference hash of 64 bits.
      is_comparable: whether near duplicates can be found: the picture is neither tiny nor flat.
      is_gray: whether it has no colours.
    """

    digest: bytes
    bits: int
    is_comparable: bool
    is_gray: bool


LOOK = np.dtype([("digest", "S16"), ("bits", "<u8"), ("is_comparable", "?"), ("is_gray", "?")])
"""A `Look` as an element of an array."""


@dataclass(frozen=True)
class Group:
    """Pictures that are the same, or nearly so.

    Attributes:
      rows: their positions, ascending.
      distance: most bits of 64 in which the hashes of two neighbours in the group differ; None if all have the same
        pixels.
    """

    rows: tuple[int, ...]
    distance: int | None


def make_thumbnail(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "16 18 3"]:
    """Returns a picture in `ROWS` x `COLUMNS` pixels, each the mean of an area."""
    return np.asarray(Image.fromarray(pixels).resize((COLUMNS, ROWS), Image.Resampling.BOX))


def look_at(pixels: UInt8[np.ndarray, "height width 3"], *, shorter_side: int) -> Look:
    """Returns what duplicates of a picture are found by.

    Args:
      pixels: the picture, scaled as all others.
      shorter_side: its shorter side before that.
    """
    thumbnail = make_thumbnail(pixels)
    cells = thumbnail.reshape(ROWS // 2, 2, COLUMNS // 2, 2, 3).sum((1, 3, 4), dtype=np.int64)
    bits = int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes())
    wide = thumbnail.astype(np.int16)
    return Look(
        digest=hashlib.sha256(np.ascontiguousarray(pixels)).digest()[:16],
        bits=bits,
        is_comparable=shorter_side >= LEAST_SIDE and float(wide.std()) >= LEAST_CONTRAST,
        is_gray=bool((wide.max(2) - wide.min(2)).max() <= GRAY),
    )


def find_groups(
    looks: Sequence[Look] | np.ndarray,
    thumbnail: Callable[[int], UInt8[np.ndarray, "16 18 3"]],
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Group], list[Group]]:
    """Finds the pictures that occur more than once.

    Every hash is compared with every other one, so that the time grows with the square of their number. Memory does
    not, however many pictures are alike.

    Args:
      looks: of all pictures; an array is of the type `LOOK`.
      thumbnail: returns the thumbnail of a picture by its position; called only for candidates, from several threads.
      advance: is called with the number of comparisons that are done, and of all; the unit is arbitrary.

    Returns:
      The groups of pictures with the same pixels, and the groups of those that are the same or nearly so.
    """
    columns = np.asarray(looks, LOOK)
    # The same pixels.
    same = _find_same(columns["digest"])
    parents = np.arange(len(columns))
    repeated = np.array([(group.rows[0], row) for group in same for row in group.rows[1:]], np.int64).reshape(-1, 2)
    _join(parents, repeated[:, 0], repeated[:, 1])
    # Nearly the same: one picture of each group stands for it.
    stands = columns["is_comparable"].copy()
    stands[repeated[:, 1]] = False
    first = np.flatnonzero(stands)
    hashes = columns["bits"][first]
    distances = np.full(len(columns), -1, np.int64)
    for pairs in _near_pairs(hashes, Thumbnails(first, thumbnail), advance):
        left, right = first[pairs.left], first[pairs.right]
        _join(parents, left, right)
        np.maximum.at(distances, left, pairs.distances)
    return same, _collect(parents, distances)


def _find_same(digests: np.ndarray) -> list[Group]:
    """Returns the groups of rows with the same digest, in the order of their first rows.

    Only rows whose first eight bytes occur more than once become objects of Python: there may be ten million others.
    """
    starts = np.ascontiguousarray(digests).view(np.uint64)[::2]
    ordered = np.sort(starts)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return []
    places = np.minimum(np.searchsorted(repeated, starts), len(repeated) - 1)
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(repeated[places] == starts).tolist():
        alike[digests[row]].append(row)
    return [Group(tuple(rows), None) for rows in alike.values() if len(rows) > 1]


def _join(parents: Int64[np.ndarray, " rows"], left: Int64[np.ndarray, " k"], right: Int64[np.ndarray, " k"]) -> None:
    """Joins the groups of pairs in a forest.

    Args:
      parents: the parent of each row, changed in place; a root is its own parent, and the first row of its group.
      left: a row of each pair.
      right: the other row of each pair.
    """
    while len(left):
        left, right = _find_roots(parents, left), _find_roots(parents, right)
        apart = left != right
        left, right = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        # A root of several pairs gets the first of their other roots; the next round joins what remains.
        np.minimum.at(parents, right, left)


def _find_roots(parents: Int64[np.ndarray, " rows"], rows: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
    """Returns the root of each row, and makes it the parent of the row."""
    roots: Int64[np.ndarray, " k"] = parents[rows]
    while (parents[roots] != roots).any():
        roots = parents[roots]
    parents[rows] = roots
    return roots


def _collect(parents: Int64[np.ndarray, " rows"], distances: Int64[np.ndarray, " rows"]) -> list[Group]:
    """Returns the groups of two rows or more of a forest, in the order of their first rows."""
    roots = _find_roots(parents, np.arange(len(parents)))
    members: defaultdict[int, list[int]] = defaultdict(list)
    is_alone = np.bincount(roots, minlength=len(roots)) == 1
    for row in np.flatnonzero(~is_alone[roots]):
        members[int(roots[row])].append(int(row))
    farthest = {root: int(distances[rows].max()) for root, rows in members.items()}
    return [Group(tuple(rows), farthest[root] if farthest[root] >= 0 else None) for root, rows in members.items()]


class Thumbnails:
    """Thumbnails of pictures, each made when it is needed for the first time."""

    def __init__(self, rows: Int64[np.ndarray, " n"], thumbnail: Callable[[int], UInt8[np.ndarray, "16 18 3"]]):
        """Makes none yet.

        Args:
          rows: the positions of the pictures.
          thumbnail: returns the thumbnail of a picture by its position.
        """
        self._rows = rows
        self._thumbnail = thumbnail
        self._pixels = np.empty((len(rows), ROWS * COLUMNS * 3), np.uint8)  # Takes no memory before it is written.
        self._is_made = np.zeros(len(rows), bool)

    def vectors(self, places: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k 864"]:
        """Returns thumbnails with mean 0 and length 1: the dot product of two is their correlation.

        Several threads may call this: if two of them make the same thumbnail, it is the same.

        Args:
          places: which pictures, as indices of `rows`.
        """
        for place in places[~self._is_made[places]]:
            self._pixels[place] = self._thumbnail(int(self._rows[place])).ravel()
            self._is_made[place] = True
        vectors: Float32[np.ndarray, "k 864"] = self._pixels[places].astype(np.float32)
        vectors -= vectors.mean(axis=1, keepdims=True)
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        return vectors


class Pairs(NamedTuple):
    """Near duplicates, as indices of the hashes.

    Attributes:
      left: the first picture of each pair.
      right: the second one.
      distances: number of bits in which their hashes differ.
    """

    left: Int64[np.ndarray, " k"]
    right: Int64[np.ndarray, " k"]
    distances: UInt8[np.ndarray, " k"]


def _near_pairs(
    hashes: UInt64[np.ndarray, " n"], thumbnails: Thumbnails, advance: Callable[[int, int], None]
) -> Iterator[Pairs]:
    """Yields all near duplicates, some pairs at a time."""
    tiles = [
        (start, other)
        for start in range(0, len(hashes), TILE[0])
        for other in range(start // TILE[1] * TILE[1], len(hashes), TILE[1])
    ]
    # NumPy releases the interpreter lock.
    found = map_ahead(lambda tile: _compare_tile(hashes, thumbnails, *tile), tiles)
    for done, pairs in enumerate(found, 1):
        advance(done, len(tiles))
        yield pairs


def _compare_tile(hashes: UInt64[np.ndarray, " n"], thumbnails: Thumbnails, start: int, other: int) -> Pairs:
    """Returns the near duplicates among some hashes, from `start` on, and some others, from `other` on."""
    distances = np.bitwise_count(hashes[start : start + TILE[0], None] ^ hashes[other : other + TILE[1]])
    # Flat, since `nonzero` of a matrix would take three times as long as all the rest.
    candidates = np.flatnonzero(distances <= RADIUS)
    left, right = start + candidates // distances.shape[1], other + candidates % distances.shape[1]
    # Each pair once, and no picture with itself.
    is_first = left < right
    left, right, near = left[is_first], right[is_first], distances.ravel()[candidates[is_first]]
    # Every thumbnail is compared with all others of the tile, which is one matrix product.
    lefts, row = np.unique(left, return_inverse=True)
    rights, column = np.unique(right, return_inverse=True)
    likeness = thumbnails.vectors(lefts) @ thumbnails.vectors(rights).T
    is_alike = likeness[row, column] >= LIKENESS
    return Pairs(left[is_alike], right[is_alike], near[is_alike])
