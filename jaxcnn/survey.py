"""What is in a set of pictures: classes, sizes, files that cannot be read, and pictures that occur more than once."""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxcnn.bulk.picture_files import PictureFile, find_pictures
from jaxcnn.data.decoding import decode_file
from jaxcnn.data.duplicates import LEAST_SIDE, Group, Look, find_groups, look_at, make_thumbnail
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.findings import FEW
from jaxcnn.data.loading import shard_source
from jaxcnn.data.pictures import ListedPictures
from jaxcnn.data.sources.class_folders import TRAIN, VALIDATION
from jaxcnn.data.sources.folder import folder_source
from jaxcnn.data.threads import map_ahead
from jaxcnn.errors import UserError

SIDE = 64
"""Side in pixels of the squares that pictures are compared at."""

BATCH = 16
"""Pictures that a thread looks at before it hands over what it found."""


class Place(NamedTuple):
    """Where a picture belongs.

    Attributes:
      name: name of its class; empty if it has none.
      split: `train`, `validation`, or the name of a folder that training leaves out, such as `test`; empty if it is in
        none of them.
    """

    name: str
    split: str


@dataclass(frozen=True, slots=True)
class ShardPicture:
    """A picture in a tar or Parquet file; it has what a `PictureFile` has.

    Attributes:
      name: how messages and results call it: the path of the tar or Parquet file, followed by its name or row in it.
      pictures: the pictures of its split.
      index: its position among them.
    """

    name: str
    pictures: ListedPictures
    index: int

    @property
    def expected(self) -> bool:
        """Whether it has to be a picture."""
        return True

    @property
    def is_on_disk(self) -> bool:
        """Whether the name is the path of a file."""
        return False

    def read(self) -> bytes:
        """Returns the encoded picture; raises UserError if it cannot be read."""
        return self.pictures[self.index].encoded


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures of a path before they are read.

    Attributes:
      files: all files that may be pictures.
      names: the classes.
      places: the place of each file that training would use, by its name.
      problem: why training would refuse it; empty if it would not.
    """

    files: Sequence[PictureFile | ShardPicture]
    names: tuple[str, ...]
    places: Mapping[str, Place]
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
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

    file: PictureFile | ShardPicture
    place: Place
    width: int
    height: int
    format: str
    look: Look
    thumbnail: UInt8[np.ndarray, "16 18 3"]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is in a folder, a zip, or tar or Parquet files.

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

    def counts(self, split: str) -> dict[str, int]:
        """Returns the number of pictures of each class in a split that can be read."""
        counts = Counter(seen.place for seen in self.pictures)
        return {name: counts[Place(name, split)] for name in self.names}

    @cached_property
    def leaks(self) -> list[Group]:
        """The duplicates that are in more than one split."""
        return [group for group in self.duplicates if len({place.split for place in self._places(group)} - {""}) > 1]

    @cached_property
    def contradictions(self) -> list[Group]:
        """The duplicates that are in more than one class."""
        return [group for group in self.duplicates if len({place.name for place in self._places(group)} - {""}) > 1]

    def files(self, group: Group) -> list[str]:
        """Returns the names of the files of a group."""
        return [self.pictures[row].file.name for row in group.rows]

    def _places(self, group: Group) -> list[Place]:
        return [self.pictures[row].place for row in group.rows]


type Advance = Callable[[str, int, int], None]
"""Is called with what is being done, how much of it is done, and how much there is in all."""


def survey(path: Path, *, advance: Advance = lambda what, done, total: None) -> Survey:
    """Looks at every picture of a folder, with or without class folders, a zip, or tar or Parquet files.

    Args:
      path: the folder or file.
      advance: is called as the work proceeds.

    Raises:
      UserError: there is no such folder or file, there are no files in it, or tar or Parquet files are damaged.
    """
    listing = list_pictures(path)
    # Every file, on all cores.
    pictures: list[Seen] = []
    broken: dict[str, str] = {}
    passed_over: list[str] = []

    def find_place(name: str) -> Place:
        # The folders above the path say nothing.
        return listing.places.get(name) or _place_left_out(name.removeprefix(f"{path}/"))

    def look(files: Sequence[PictureFile | ShardPicture]) -> list[tuple[PictureFile | ShardPicture, Seen | str]]:
        return [(file, _look(file, find_place(file.name))) for file in files]

    batches = map_ahead(look, itertools.batched(listing.files, BATCH))
    for done, (file, found) in enumerate(itertools.chain.from_iterable(batches), 1):
        advance("looking at pictures", done, len(listing.files))
        if isinstance(found, Seen):
            pictures.append(found)
        elif file.expected:
            broken[file.name] = found
        else:
            passed_over.append(file.name)
    # Every picture with every other one.
    _, duplicates = find_groups(
        [seen.look for seen in pictures],
        lambda row: pictures[row].thumbnail,
        advance=partial(advance, "comparing pictures"),
    )
    return Survey(
        where=str(path),
        problem=listing.problem,
        names=listing.names,
        pictures=tuple(pictures),
        broken=broken,
        passed_over=tuple(passed_over),
        duplicates=tuple(duplicates),
    )


def list_pictures(path: Path) -> Listing:
    """Lists the pictures of a path, and what training would do with them.

    Raises:
      UserError: as `survey`.
    """
    kinds = "give a folder or a zip of pictures, or tar or Parquet files"
    if not path.exists():
        raise UserError(f"{path} does not exist; {kinds}")
    if (shards := shard_source(path)) is not None:
        return _list_shards(path, shards.open())
    if not path.is_dir() and path.suffix.lower() != ".zip":
        raise UserError(f"{path} is a file; {kinds}")
    # All files, also those that training would leave out.
    files, _ = find_pictures([str(path)], ())
    try:
        dataset = folder_source(str(path)).open()
    except UserError as error:
        return Listing(files=tuple(files), names=(), places={}, problem=str(error))
    places = {f"{path}/{file}": place for _, _, file, place in _list_places(dataset)}
    return Listing(files=tuple(files), names=dataset.names, places=places)


def _list_shards(path: Path, dataset: EncodedDataset) -> Listing:
    """Lists the pictures of tar or Parquet files, which training uses all."""
    folder = path if path.is_dir() else path.parent
    files, places = [], {}
    for pictures, index, file, place in _list_places(dataset):
        name = str(folder / file)
        files.append(ShardPicture(name, pictures, index))
        places[name] = place
    return Listing(files=files, names=dataset.names, places=places)


def _list_places(dataset: EncodedDataset) -> Iterator[tuple[ListedPictures, int, str, Place]]:
    """Yields the pictures of each split, the position of a picture among them, its file, and its place."""
    for split, pictures in (("train", dataset.train), ("validation", dataset.validation)):
        if isinstance(pictures, ListedPictures):  # Without validation pictures it is an empty tuple.
            for index, (file, label) in enumerate(pictures.listed()):
                yield pictures, index, file, Place(dataset.names[label] if label >= 0 else "", split)


def _place_left_out(name: str) -> Place:
    """Returns the place of a file that training would not use, such as one of `test/` beside `val/`."""
    *_, folder = folders = PurePosixPath(name).parts[:-1] or ("",)
    split = next((part.lower() for part in reversed(folders) if part.lower() in TRAIN + VALIDATION), "")
    return Place(folder if split and folder.lower() != split else "", split)


def _look(file: PictureFile | ShardPicture, place: Place) -> Seen | str:
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
    train, validation = found.counts("train"), found.counts("validation")
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
