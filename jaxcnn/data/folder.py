"""A folder or a zip with one folder of pictures per class."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from PIL import Image

from jaxcnn.data.archive import MAX_BYTES, Archive
from jaxcnn.data.picture import FORMATS
from jaxcnn.data.source import Opened, Picture, Source, make_key
from jaxcnn.errors import UserError
from jaxcnn.paths import composed, named_path, readable

TRAIN = ("train", "training")
"""Names of the folder of training pictures, in any case; the first that is there is taken.

It may be a word of a longer name, such as `training_set` or `seg_train`, if the other folder's differs in that alone.
"""

VALIDATION = ("val", "valid", "validation", "test", "testing")
"""Names of the folder of validation pictures beside it, likewise."""

JUNK = ("thumbs.db", "desktop.ini", "$recycle.bin", "__macosx", "icon\r", "@eadir", "#recycle")
"""What Windows, macOS and Synology's disk stations leave behind, in lower case."""


def folder_source(source: str) -> Source:
    """A folder or zip of `CLASS/picture.jpg`, or of `train/CLASS/picture.jpg` with a folder of `VALIDATION` beside.

    Pictures may lie deeper inside their class folder, and everything may lie in one outer folder. A class index is the
    position in the sorted names of the class folders, whose characters are composed. A folder is known by the names,
    sizes and times of its files.

    Raises:
      UserError: no such path, or neither a folder nor a zip.
    """
    path = named_path(source, option="data.source") if source else None
    if path is None or not path.exists():
        missing = f"data.source {source!r} does not exist" if source else "data.source is not set"
        raise UserError(f"{missing}; give a folder, a zip, digits, tiny_imagenet or tfds:NAME")
    path = path.resolve()
    if path.is_dir():
        return _folder_source(path)
    stat = path.stat()
    return Source(key=make_key(path, stat.st_size, stat.st_mtime_ns), open=lambda: _open_zip(path))


def _folder_source(path: Path) -> Source:
    files, folders = list_folder(path)
    try:
        stats = [(file, os.stat(f"{path}/{file}")) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    for name, stat in stats:
        if not S_ISREG(stat.st_mode):
            raise UserError(f"{name} in {path} is no file (a pipe or a device); remove it")
    identity = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return Source(key=make_key(path, identity, sorted(folders)), open=lambda: _open_folder(path, files, folders))


def _open_folder(path: Path, files: list[str], folders: list[str]) -> Opened:
    tree = Tree.of(
        map(PurePosixPath, files),
        map(PurePosixPath, folders),
        where=str(path),
        read=lambda file: _read(path / file),
    )
    return open_tree(tree, name=readable(path.name))


def _open_zip(path: Path) -> Opened:
    archive = Archive(path)
    tree = Tree.of(archive.files, archive.folders, where=str(path), read=archive.read)
    return open_tree(tree, name=readable(path.stem))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UserError(f"{path} is too large for a picture: {size:,} bytes; remove it")
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def list_folder(path: Path) -> tuple[list[str], list[str]]:
    """The files and folders in a folder by their path inside, sorted, without hidden ones; links are followed.

    Raises:
      UserError: a folder cannot be read, or a link leads back to a folder that it lies in.
    """
    files: list[str] = []  # text: paths take many times as long to make and to sort
    folders: list[str] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for here, subfolders, members in path.walk(on_error=refuse, follow_symlinks=True):
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise UserError(f"{here} is a link to a folder that it lies in; remove it")
        subfolders[:] = [name for name in subfolders if not is_junk(name)]
        inside = "" if here == path else f"{here.relative_to(path).as_posix()}/"
        folders += [inside + name for name in subfolders]
        files += [inside + name for name in members if not is_junk(name)]
    return sorted(files, key=_parts), sorted(folders, key=_parts)


def _parts(inside: str) -> list[str]:
    """What paths are sorted by."""
    return inside.split("/")


def is_junk(name: str) -> bool:
    """Whether a file or folder is passed over: hidden, left behind by a system, or Tiny ImageNet's boxes."""
    return name.startswith(".") or name.lower() in JUNK or name.endswith("_boxes.txt")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The inside of a folder or zip; for each folder, the names of the folders in it and all the files below it."""

    where: str
    read: Callable[[PurePosixPath], bytes]
    folders: dict[PurePosixPath, set[str]]
    files: dict[PurePosixPath, list[PurePosixPath]]

    @staticmethod
    def of(
        files: Iterable[PurePosixPath],
        folders: Iterable[PurePosixPath],
        *,
        where: str,
        read: Callable[[PurePosixPath], bytes],
    ) -> "Tree":
        """Builds the tree from paths; folders may be left out where files lie in them."""
        tree = Tree(where=where, read=read, folders={PurePosixPath(): set()}, files={PurePosixPath(): []})
        for path in sorted(folders):
            tree._add_folder(path)
        for path in sorted(files):
            if not any(map(is_junk, path.parts)):
                tree._add_folder(path.parent)
                for folder in path.parents:
                    tree.files[folder].append(path)
        return tree

    def _add_folder(self, path: PurePosixPath) -> None:
        if path not in self.folders and not any(map(is_junk, path.parts)):
            self._add_folder(path.parent)
            self.folders[path.parent].add(path.name)
            self.folders[path], self.files[path] = set(), []

    def loose_files(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """The files that lie directly in a folder."""
        return [path for path in self.files[folder] if path.parent == folder]

    def loose_pictures(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Those of them that are pictures by their name; lists of the classes and the like often lie beside."""
        formats = Image.registered_extensions()
        return [path for path in self.loose_files(folder) if formats.get(path.suffix.lower()) in FORMATS]


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
    for file in () if validation else tree.loose_pictures(train):
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
    while len(tree.folders[root]) == 1 and not tree.loose_files(root):
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
        return (root if loose else train_folder), None
    validation_folder = _unnested(tree, root / validation)
    if tree.folders[validation_folder]:  # otherwise pictures to test with, which have no classes
        loose += tree.loose_pictures(validation_folder)
    for file in loose:
        raise UserError(f"{tree.where}: {file} lies beside the class folders; move it into one or remove it")
    return train_folder, validation_folder


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
