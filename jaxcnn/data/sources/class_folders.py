"""Finds the folders of a tree that are classes, and the pictures in them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int32, Int64

from jaxcnn.data.decoding import is_picture
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.pictures import Picture, TooLargeError
from jaxcnn.data.sources.tree import Tree, has_picture_ending, is_raw
from jaxcnn.errors import UserError
from jaxcnn.paths import composed, readable

TRAIN = ("train", "training")
"""Names of the training folder, in any case; of several that exist the first is used.

The name may be one word of a longer name, such as `training_set` or `seg_train`, if the name of the validation folder
differs in this word alone.
"""

VALIDATION = ("val", "valid", "validation", "test", "testing")
"""Names of the validation folder beside the training folder, by the same rules."""


def open_class_folders(tree: Tree, *, name: str) -> EncodedDataset:
    """Finds the class folders and the pictures in them.

    Args:
      tree: the folder or zip.
      name: becomes the name of the data set.

    Raises:
      UserError: there are no class folders, a class has no pictures, a class occurs only in validation, pictures lie
        beside the class folders, or two classes have the same name.
    """
    # The training folders define the classes.
    train, validation = _split_folders(tree)
    names = sorted(map(composed, tree.folders[train]))
    if not names:
        raise UserError(f"{tree.where} has no class folders; put the pictures of each class in one folder")
    for file in tree.loose_pictures(train):
        raise UserError(f"{tree.where}: {file} lies beside the class folders; move it into one or remove it")
    for unknown in sorted(set(map(composed, tree.folders[validation])) - set(names)) if validation else ():
        raise UserError(f"{tree.where}: class {unknown!r} is in {validation}/ but not in {train}/; add or remove it")

    # Names that are not UTF-8 are made readable, which may make two of them equal.
    classes = tuple(map(readable, names))
    for same, count in Counter(classes).items():
        if count > 1:
            raise UserError(f"{tree.where}: {count} class folders are called {same!r} in UTF-8; rename them")
    found = [FolderPictures.find(tree, folder, names) for folder in (train, *([validation] if validation else []))]
    return EncodedDataset(
        name=name,
        names=classes,
        license="unknown",
        train=found[0],
        validation=found[1] if validation else (),
        passed_over=tuple(path for pictures in found for path in pictures.passed_over),
    )


def _split_folders(tree: Tree) -> tuple[PurePosixPath, PurePosixPath | None]:
    """Returns the folder of the training classes, and that of the validation classes if there is one.

    Raises:
      UserError: pictures lie beside the class folders, or a folder could be a split as well as a class.
    """
    # Enter outer folders, which contain a single folder: many zips have one.
    root = PurePosixPath()
    while len(tree.folders[root]) == 1 and not tree.loose_pictures(root):
        (only,) = tree.folders[root]
        if not tree.folders[root / only]:
            break  # The only class, not an outer folder
        root /= only

    # Look for `train` and `val`, then for longer names with these words.
    splits = _by_split_names(tree.folders[root])
    train, validation = _first_pair(splits.pop(("",), {}))
    if train is None:
        train, validation = _named_alike(tree, root, splits.values())
    if train is None or not tree.folders[root / train]:
        return root, None  # No splits: even `train` is a class if it has no folders

    # Decide whether a lone `train` holds the classes, or is a class itself.
    train_folder = _unnested(tree, root / train)
    loose = tree.loose_pictures(train_folder)
    if validation is None:
        if loose:
            return root, None
        _check_no_stray_pictures(tree, root, train)
        return train_folder, None

    # A validation folder without class folders holds unlabelled test pictures.
    validation_folder = _unnested(tree, root / validation)
    if tree.folders[validation_folder]:
        loose += tree.loose_pictures(validation_folder)
    for file in loose:
        raise UserError(f"{tree.where}: {file} lies beside the class folders; move it into one or remove it")
    return train_folder, validation_folder


def _check_no_stray_pictures(tree: Tree, root: PurePosixPath, train: str) -> None:
    """Raises UserError if folders with pictures lie beside `train/`, the only folder that is named as a split."""
    for other in sorted(tree.folders[root] - {train}):
        if tree.has_pictures(root / other):
            raise UserError(
                f"{tree.where}: {root / train} looks like the training pictures of all classes, but {root / other} "
                f"lies beside it; move {root / other} elsewhere, or rename {root / train} if it is a class"
            )


def _by_split_names(folders: set[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """Groups the folders whose names contain exactly one word of `TRAIN` or `VALIDATION`.

    Returns:
      Keyed by the other words of the name, with "" in place of that word: a dict from that word to the folder.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in sorted(folders):
        # Names with two such words, such as `train test`, say nothing.
        words = re.split(r"[^a-z]+", folder.lower())
        names = [word for word in words if word in TRAIN + VALIDATION]
        if len(names) == 1:
            others = tuple("" if word in names else word for word in words)
            found.setdefault(others, {})[names[0]] = folder
    return found


def _first_pair(folders: dict[str, str]) -> tuple[str | None, str | None]:
    """Returns the folders that have the first name of `TRAIN` and the first of `VALIDATION` that exists."""
    train, validation = (
        next((folders[name] for name in names if name in folders), None) for names in (TRAIN, VALIDATION)
    )
    return train, validation


def _named_alike(
    tree: Tree, root: PurePosixPath, splits: Iterable[dict[str, str]]
) -> tuple[str, str] | tuple[None, None]:
    """Returns two folders such as `training_set` and `test_set`, if there are any.

    Their names differ in the split alone, and they have class folders of the same names. Other folders with such words
    in their names, such as `training shoes` and `test tube`, are classes.

    Raises:
      UserError: something else lies beside the two folders, which could be a class.
    """
    for folders in splits:
        train, validation = _first_pair(folders)
        if train is None or validation is None:
            continue
        # Splits share their classes; other folders with similar names hardly ever share subfolders.
        classes, known = (tree.folders[_unnested(tree, root / split)] for split in (train, validation))
        if len(classes) < 2 or not classes & known:
            continue
        others = sorted(root / name for name in tree.folders[root].difference(folders.values()))
        for other in (*others, *tree.loose_pictures(root)):
            raise UserError(
                f"{tree.where}: {root / train} and {root / validation} look like training and validation pictures of "
                f"the same classes, but {other} lies beside them; move {other} elsewhere, or rename the two if "
                "they are classes"
            )
        return train, validation
    return None, None


def _unnested(tree: Tree, folder: PurePosixPath) -> PurePosixPath:
    """Returns `train/train` for a folder `train` that contains nothing else, as zips of zips do; else the folder."""
    inner = folder / folder.name
    alone = tree.folders[folder] == {folder.name} and not tree.loose_pictures(folder)
    return inner if alone and tree.folders[inner] else folder


@dataclass(frozen=True, eq=False)
class FolderPictures:
    """The pictures of one split, read when they are indexed.

    Attributes:
      tree: the folder or zip.
      places: the position of each picture in `tree.paths`.
      labels: its class index.
      passed_over: the other files, which are no pictures.
    """

    tree: Tree
    places: Int64[np.ndarray, " n"]
    labels: Int32[np.ndarray, " n"]
    passed_over: list[str]

    @staticmethod
    def find(tree: Tree, folder: PurePosixPath, names: Sequence[str]) -> "FolderPictures":
        """Lists the pictures in the class folders of `folder`; `names` are all classes in the order of their indices.

        A file is a picture if its name has the ending of one, or if it begins like one.

        Raises:
          UserError: a class has no pictures, or a file cannot be read.
        """
        numbers = {name: label for label, name in enumerate(names)}
        places, labels = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        passed_over: list[str] = []
        for name in sorted(tree.folders[folder], key=composed):
            inside = tree.files[folder / name]
            chosen = np.array([_is_picture(tree, tree.paths[place]) for place in inside], bool)
            if not chosen.any():
                raise UserError(f"{tree.where}: the folder {folder / name} has no pictures; add some or remove it")
            places.append(inside.start + np.flatnonzero(chosen))
            labels.append(np.full(len(places[-1]), numbers[composed(name)], np.int32))
            passed_over += [tree.paths[inside[place]] for place in np.flatnonzero(~chosen)]
        return FolderPictures(tree, np.concatenate(places), np.concatenate(labels), passed_over)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Picture:
        path, label = self.tree.paths[int(self.places[index])], int(self.labels[index])
        encoded = self.tree.read(PurePosixPath(path))
        return Picture(where=f"{path} in {self.tree.where}", encoded=encoded, label=label, file=path)

    def listed(self) -> Iterator[tuple[str, int]]:
        """Yields the path of each picture in the folder or zip, and its class index."""
        for place, label in zip(self.places, self.labels, strict=True):
            yield self.tree.paths[int(place)], int(label)


def _is_picture(tree: Tree, path: str) -> bool:
    """Returns whether a file has to be read as a picture: it has the ending of one, or begins like one."""
    if is_raw(path):
        return False
    if has_picture_ending(path):
        return True
    if tree.begins_like_picture is not None:
        return tree.begins_like_picture(PurePosixPath(path))
    try:
        return is_picture(tree.read(PurePosixPath(path)))
    except TooLargeError:  # Such as a film
        return False
