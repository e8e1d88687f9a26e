"""Finds pictures that occur more than once: the same pixels, or nearly the same picture saved again or resized.

Near duplicates are found in two steps. The difference hash (N. Krawetz, "Kind of Like That", 2013) has 64 bits: whether
each cell of an 8x9 grid is darker than its right neighbour. Pairs whose hashes differ in at most `RADIUS` bits are then
compared by their thumbnails, since different pictures may have like hashes.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from jaxcnn.data.decoding import decoding_threads

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
    looks: Sequence[Look], thumbnail: Callable[[int], UInt8[np.ndarray, "16 18 3"]]
) -> tuple[list[Group], list[Group]]:
    """Finds the pictures that occur more than once.

    Every hash is compared with every other one, so that the time grows with the square of their number.

    Args:
      looks: of all pictures.
      thumbnail: returns the thumbnail of a picture by its position; called only for candidates, from several threads.

    Returns:
      The groups of pictures with the same pixels, and the groups of those that are the same or nearly so.
    """
    # The same pixels.
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, look in enumerate(looks):
        alike[look.digest].append(row)
    same = [Group(tuple(rows), None) for rows in alike.values() if len(rows) > 1]
    # Nearly the same: one picture of each group stands for it.
    first = np.array([rows[0] for rows in alike.values() if looks[rows[0]].is_comparable], np.int64)
    hashes = np.array([looks[row].bits for row in first], np.uint64)
    near = [
        (int(first[one]), int(first[other]), distance) for one, other, distance in _near_pairs(hashes, first, thumbnail)
    ]
    return same, _merge(same, near)


def _merge(same: Sequence[Group], near: Sequence[tuple[int, int, int]]) -> list[Group]:
    """Joins groups and pairs that have a picture in common, and returns the groups in the order of their pictures."""
    # A forest, whose roots stand for the groups.
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    links = [(group.rows[0], row) for group in same for row in group.rows[1:]]
    for one, other in (*links, *((one, other) for one, other, _ in near)):
        parent[root(other)] = root(one)
    # The pictures of each root, and its largest distance.
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(parent):
        members[root(row)].append(row)
    distances: dict[int, int] = {}
    for one, _, distance in near:
        distances[root(one)] = max(distance, distances.get(root(one), 0))
    return [Group(tuple(rows), distances.get(top)) for top, rows in members.items()]


def _near_pairs(
    hashes: UInt64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"], thumbnail: Callable[[int], np.ndarray]
) -> list[tuple[int, int, int]]:
    """Returns the pairs of near duplicates, each with the number of bits in which their hashes differ."""

    def compare(start: int, other: int) -> list[tuple[int, int, int]]:
        distances = np.bitwise_count(hashes[start : start + TILE[0], None] ^ hashes[other : other + TILE[1]])
        found = []
        # Flat, since `nonzero` of a matrix would take three times as long as all the rest.
        for place in np.flatnonzero(distances <= RADIUS):
            one, two = divmod(int(place), distances.shape[1])
            left, right = start + one, other + two
            # Each pair once, and no picture with itself.
            if left < right and _likeness(thumbnail(int(rows[left])), thumbnail(int(rows[right]))) >= LIKENESS:
                found.append((left, right, int(distances[one, two])))
        return found

    tiles = [
        (start, other)
        for start in range(0, len(hashes), TILE[0])
        for other in range(start // TILE[1] * TILE[1], len(hashes), TILE[1])
    ]
    # NumPy releases the interpreter lock.
    with ThreadPoolExecutor(decoding_threads()) as pool:
        return list(itertools.chain.from_iterable(pool.map(lambda tile: compare(*tile), tiles)))


def _likeness(one: UInt8[np.ndarray, "16 18 3"], other: UInt8[np.ndarray, "16 18 3"]) -> float:
    """Returns the correlation of two thumbnails over all pixels and colours, from -1 to 1."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
