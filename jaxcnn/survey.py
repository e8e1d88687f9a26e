"""What is in a folder or zip of pictures: classes, sizes, files that cannot be read, and pictures that occur twice."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxcnn.bulk.picture_files import PictureFile, find_pictures
from jaxcnn.data.decoding import decode_file, decoding_threads
from jaxcnn.data.duplicates import LEAST_SIDE, Group, Look, find_groups, look_at, make_thumbnail
from jaxcnn.data.findings import FEW
from jaxcnn.data.sources.class_folders import TRAIN, VALIDATION
from jaxcnn.data.sources.folder import folder_source
from jaxcnn.data.sources.parquet import find_parquet
from jaxcnn.data.sources.tars import find_tars
from jaxcnn.errors import UserError

SIDE = 64
"""Side in pixels of the squares that pictures are compared at."""


class Place(NamedTuple):
    """Where a picture belongs.

    Attributes:
      name: name of its class; empty if it has none.
      split: `train`, `validation`, or the name of a folder that training leaves out, such as `test`; empty if it is in
        none of them.
    """

    name: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture that was read.

    Attributes:
      file: its file.
      place: its class and its split.
      width: its width in pixels.
      height: its height.
      format: Pillow's name of its format.
      look: what duplicates are found by.
      thumbnail: uint8 [16, 18, 3].
    """

    file: PictureFile
    place: Place
    width: int
    height: int
    format: str
    look: Look
    thumbnail: UInt8[np.ndarray, "16 18 3"]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is in a folder or zip.

    Attributes:
      where: its path.
      problem: why training would refuse it; empty if it would not.
      names: the classes.
      pictures: the pictures that can be read, in the order of their paths.
      broken: why the other pictures cannot be read, by file.
      passed_over: files that are no pictures.
      duplicates: groups of pictures that are the same or nearly so; rows are positions in `pictures`.
    """

    where: str
    problem: str
    names: tuple[str, ...]
    pictures: tuple[Seen, ...]
    broken: Mapping[str, str]
    passed_over: tuple[str, ...]
    duplicates: tuple[Group, ...]

    def counts(self, split: str) -> Counter[str]:
        """Returns the number of pictures of each class in a split, which can be read."""
        places = [seen.place for seen in self.pictures]
        return Counter(place.name for place in places if place.split == split and place.name in self.names)

    @property
    def leaks(self) -> list[Group]:
        """The duplicates that are in more than one split."""
        return [group for group in self.duplicates if len({place.split for place in self._places(group)} - {""}) > 1]

    @property
    def contradictions(self) -> list[Group]:
        """The duplicates that are in more than one class."""
        return [group for group in self.duplicates if len({place.name for place in self._places(group)} - {""}) > 1]

    def files(self, group: Group) -> list[str]:
        """Returns the names of the files of a group."""
        return [self.pictures[row].file.name for row in group.rows]

    def _places(self, group: Group) -> list[Place]:
        return [self.pictures[row].place for row in group.rows]


def survey(path: Path, *, advance: Callable[[int, int], None] = lambda done, total: None) -> Survey:
    """Looks at every picture of a folder or zip.

    Args:
      path: the folder or zip, with or without class folders.
      advance: is called with the number of files that are done, and with the number of all files.

    Raises:
      UserError: there is no such folder or zip, there are no files in it, or the pictures are in tar or Parquet files.
    """
    if find_tars(path) or find_parquet(path):
        raise UserError(
            f"the pictures of {path} are in tar or Parquet files, which can be trained on but not inspected; give a "
            "folder or a zip of pictures"
        )
    if path.exists() and not path.is_dir() and path.suffix.lower() != ".zip":
        raise UserError(f"{path} is a file; give a folder or a zip of pictures")
    # What training would do with it.
    files, total = find_pictures([str(path)], ())
    names, places, problem = _find_places(path)
    # Every file, on all cores.
    pictures: list[Seen] = []
    broken: dict[str, str] = {}
    passed_over: list[str] = []

    def look(file: PictureFile) -> tuple[PictureFile, Seen | str]:
        return file, _look(file, places.get(file.name) or _place_left_out(file.name))

    pool = ThreadPoolExecutor(decoding_threads())
    try:
        for done, (file, found) in enumerate(pool.map(look, files), 1):
            advance(done, total or done)
            if isinstance(found, Seen):
                pictures.append(found)
            elif file.expected:
                broken[file.name] = found
            else:
                passed_over.append(file.name)
    finally:
        pool.shutdown(cancel_futures=True)  # After Ctrl-C only the pictures in progress are finished.
    _, duplicates = find_groups([seen.look for seen in pictures], lambda row: pictures[row].thumbnail)
    return Survey(
        where=str(path),
        problem=problem,
        names=names,
        pictures=tuple(pictures),
        broken=broken,
        passed_over=tuple(passed_over),
        duplicates=tuple(duplicates),
    )


def _find_places(path: Path) -> tuple[tuple[str, ...], dict[str, Place], str]:
    """Returns the classes, the place of each file that training would use, and why training would refuse them."""
    try:
        dataset = folder_source(str(path)).open()
    except UserError as error:
        return (), {}, str(error)
    places = {
        f"{path}/{inside}": Place(dataset.names[label], split)
        for split, pictures in (("train", dataset.train), ("validation", dataset.validation))
        for inside, label in getattr(pictures, "paths", ())
    }
    return dataset.names, places, ""


def _place_left_out(name: str) -> Place:
    """Returns the place of a file that training would not use, such as one of `test/` beside `val/`."""
    *_, folder = folders = PurePosixPath(name).parts[:-1] or ("",)
    split = next((part.lower() for part in reversed(folders) if part.lower() in TRAIN + VALIDATION), "")
    return Place(folder if split and folder.lower() != split else "", split)


def _look(file: PictureFile, place: Place) -> Seen | str:
    """Returns what a picture looks like, or why it cannot be read."""
    try:
        decoded = decode_file(file.read(), size=SIDE, where=file.name)
    except UserError as error:
        return str(error)
    return Seen(
        file=file,
        place=place,
        width=decoded.width,
        height=decoded.height,
        format=decoded.format,
        look=look_at(decoded.pixels, shorter_side=min(decoded.width, decoded.height)),
        thumbnail=make_thumbnail(decoded.pixels),
    )


def find_few(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the classes with too few training pictures, with their numbers."""
    return {name: count for name, count in counts.items() if count < FEW}


def measure_imbalance(counts: Iterable[int]) -> float:
    """Returns the number of pictures of the largest class for each picture of the smallest."""
    filled = [count for count in counts if count]
    return max(filled) / min(filled) if filled else 1.0


def to_record(found: Survey) -> dict[str, Any]:
    """Returns the findings as JSON values; files are named by their paths."""
    train, validation = ({name: found.counts(split)[name] for name in found.names} for split in ("train", "validation"))
    sides = sorted((seen.width, seen.height) for seen in found.pictures)
    return {
        "pictures": len(found.pictures),
        "classes": {name: train[name] + validation[name] for name in found.names},
        "splits": {"train": train, "validation": validation},
        "formats": dict(Counter(seen.format for seen in found.pictures).most_common()),
        "sizes": {
            "width": _range([width for width, _ in sides]),
            "height": _range([height for _, height in sides]),
        },
        "problem": found.problem or None,
        "broken": list(found.broken),
        "reasons": dict(found.broken),
        "passed_over": list(found.passed_over),
        "duplicates": [found.files(group) for group in found.duplicates],
        # None: the same pixels.
        "distances": [group.distance for group in found.duplicates],
        "leaks": [found.files(group) for group in found.leaks],
        "contradictions": [found.files(group) for group in found.contradictions],
        "few": find_few(train),
        "imbalance": round(measure_imbalance(train.values()), 2),
        "gray": [seen.file.name for seen in found.pictures if seen.look.is_gray],
        "tiny": [seen.file.name for seen in found.pictures if min(seen.width, seen.height) < LEAST_SIDE],
    }


def _range(lengths: list[int]) -> dict[str, int | float] | None:
    if not lengths:
        return None
    return {"least": min(lengths), "median": statistics.median(lengths), "most": max(lengths)}
