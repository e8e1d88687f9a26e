"""The folders of a tree that stand for classes, and their pictures."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from jaxcnn.data.source import Opened, Picture
from jaxcnn.data.tree import Tree
from jaxcnn.errors import UserError
from jaxcnn.paths import composed, readable

TRAIN = ("train", "training")
"""Names of the folder of training pictures, in any case; the first that is there is taken.

It may be a word of a longer name, such as `training_set` or `seg_train`, if the other folder's differs in that alone.
"""

VALIDATION = ("val", "valid", "validation", "test", "testing")
"""Names of the folder of validation pictures beside it, likewise."""


def open_tree(tree: Tree, *, name: str) -> Opened:
    """Finds the class folders and the pictures in them.

    Raises:
      UserError: no class folders, a class without pictures, a validation class that is not among the training ones,
        pictures beside the class folders, or two classes whose names cannot be told apart.
    """
    train, validation = _split_folders(tree)
    names = sorted(map(composed, tree.folders[train]))
    if not names:
        raise UserError(f"{tree.where} has no class folders; put the pictures of each class in a folder of its own")
    for file in tree.loose_pictures(train):
        raise UserError(f"{tree.where}: {file} lies beside the class folders; move it into one or remove it")
    for unknown in sorted(set(map(composed, tree.folders[validation])) - set(names)) if validation else ():
        raise UserError(f"{tree.where}: class {unknown!r} is in {validation}/ but not in {train}/; add or remove it")
    classes = tuple(map(readable, names))
    for same, count in Counter(classes).items():
        if count > 1:
            raise UserError(f"{tree.where}: {count} class folders are called {same!r} in UTF-8; rename them")
    return Opened(
        name=name,
        names=classes,
        license="unknown",
        train=_Files.of(tree, train, names),
        validation=_Files.of(tree, validation, names) if validation else (),
    )


def _split_folders(tree: Tree) -> tuple[PurePosixPath, PurePosixPath | None]:
    """The folder of the training classes, and that of the validation classes if there is one.

    Raises:
      UserError: pictures lie beside the class folders, where they would be of no class, or would make classes of
        the two folders; or it cannot be told whether these are classes.
    """
    root = PurePosixPath()
    while len(tree.folders[root]) == 1 and not tree.loose_pictures(root):
        (only,) = tree.folders[root]
        if not tree.folders[root / only]:
            break  # one class folder, not an outer folder
        root /= only
    splits = _by_split_names(tree.folders[root])
    train, validation = _first_pair(splits.pop(("",), {}))  # nothing around
    if train is None:
        train, validation = _named_alike(tree, root, splits.values())
    if train is None or not tree.folders[root / train]:
        return root, None  # a class may be called `train`
    train_folder = _unnested(tree, root / train)
    loose = tree.loose_pictures(train_folder)
    if validation is None:
        if loose:
            return root, None
        _check_no_stray_pictures(tree, root, train)
        return train_folder, None
    validation_folder = _unnested(tree, root / validation)
    if tree.folders[validation_folder]:  # otherwise pictures to test with, which have no classes
        loose += tree.loose_pictures(validation_folder)
    for file in loose:
        raise UserError(f"{tree.where}: {file} lies beside the class folders; move it into one or remove it")
    return train_folder, validation_folder


def _check_no_stray_pictures(tree: Tree, root: PurePosixPath, train: str) -> None:
    """Raises a `UserError` if folders with pictures lie beside `train/`, the only one that is named as a split."""
    for other in sorted(tree.folders[root] - {train}):
        if tree.pictures(root / other):
            raise UserError(
                f"{tree.where}: {root / train} looks like the training pictures of all classes, but {root / other} "
                "lies beside it; move it elsewhere, or rename them if they are classes"
            )


def _by_split_names(folders: set[str]) -> dict[tuple[str, ...], dict[str, str]]:
    """Folders with one name of `TRAIN` or `VALIDATION` among their words.

    Returns:
      From the words around it, where that name is empty, to a dict from the name to the folder.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in sorted(folders):
        words = re.split(r"[^a-z]+", folder.lower())
        names = [word for word in words if word in TRAIN + VALIDATION]
        if len(names) == 1:
            around = tuple("" if word in names else word for word in words)
            found.setdefault(around, {})[names[0]] = folder
    return found


def _first_pair(folders: dict[str, str]) -> tuple[str | None, str | None]:
    """The folders with the first names of `TRAIN` and of `VALIDATION` that there are."""
    train, validation = (
        next((folders[name] for name in names if name in folders), None) for names in (TRAIN, VALIDATION)
    )
    return train, validation


def _named_alike(
    tree: Tree, root: PurePosixPath, splits: Iterable[dict[str, str]]
) -> tuple[str, str] | tuple[None, None]:
    """Folders such as `training_set` and `test_set`: named alike but for the split, with the same class folders.

    Others, such as `training shoes` beside `test tube`, are classes.

    Raises:
      UserError: something else lies beside them, which might be a class.
    """
    for folders in splits:
        train, validation = _first_pair(folders)
        if train is None or validation is None:
            continue
        classes, known = (tree.folders[_unnested(tree, root / split)] for split in (train, validation))
        if len(classes) < 2 or not classes & known:
            continue
        others = sorted(root / name for name in tree.folders[root].difference(folders.values()))
        for other in (*others, *tree.loose_pictures(root)):
            raise UserError(
                f"{tree.where}: {root / train} and {root / validation} look like training and validation pictures of "
                f"the same classes, but {other} lies beside them; move it elsewhere, or rename them if they are classes"
            )
        return train, validation
    return None, None


def _unnested(tree: Tree, folder: PurePosixPath) -> PurePosixPath:
    """A folder, or that of class folders in it if it has the same name and is all there is, as of zips of zips."""
    inner = folder / folder.name
    alone = tree.folders[folder] == {folder.name} and not tree.loose_pictures(folder)
    return inner if alone and tree.folders[inner] else folder


@dataclass(frozen=True)
class _Files:
    """The pictures of one split, read as they are asked for."""

    tree: Tree
    paths: list[tuple[PurePosixPath, int]]

    @staticmethod
    def of(tree: Tree, folder: PurePosixPath, names: list[str]) -> "_Files":
        labels = {name: label for label, name in enumerate(names)}
        paths = []
        for name in sorted(tree.folders[folder], key=composed):
            if not tree.files[folder / name]:
                raise UserError(f"{tree.where}: the folder {folder / name} has no pictures; add some or remove it")
            paths += [(path, labels[composed(name)]) for path in tree.files[folder / name]]
        return _Files(tree, paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Picture:
        path, label = self.paths[index]
        return Picture(where=f"{path} in {self.tree.where}", encoded=self.tree.read(path), label=label)
