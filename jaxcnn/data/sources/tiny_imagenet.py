"""Tiny ImageNet, as a builder of TFDS: downloaded and checked by its SHA-256, or read from a zip on disk."""

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.source import Source, make_key
from jaxcnn.data.sources.archive import Archive
from jaxcnn.data.sources.tfds import one_line, open_builder, preparing
from jaxcnn.data.sources.tree import is_junk
from jaxcnn.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
"""The official zip; TFDS reads its size and SHA-256 from checksums.tsv beside this file."""


def tiny_imagenet_source(archive: Path | None, *, data_dir: Path) -> Source:
    """Finds Tiny ImageNet: 200 classes, 64x64 pixels, 500 training and 50 validation pictures per class.

    Y. Le, X. Yang: Tiny ImageNet Visual Recognition Challenge, Stanford CS231N, 2015.

    Args:
      archive: the zip on disk, checked by its layout instead of its checksum; None to download it.
      data_dir: where TFDS keeps the download and the prepared data set.

    Raises:
      UserError: the zip does not exist.
    """
    key = "tiny_imagenet"
    if archive is not None:
        try:
            stat = archive.stat()
        except OSError as error:
            raise UserError(f"data.archive: {archive} cannot be read: {error.strerror}; check the path") from error
        key += f"-{make_key(archive.resolve(), stat.st_size, stat.st_mtime_ns)}"
    return Source(key=key, open=lambda: _open(archive, data_dir, key))


def _open(archive: Path | None, data_dir: Path, key: str) -> EncodedDataset:
    def make_builder() -> TinyImageNet:
        return TinyImageNet(archive=archive, data_dir=data_dir / key)

    with preparing(Path(make_builder().data_dir), data_dir / f"{key}.lock"):
        builder = make_builder()  # Another process may have prepared it meanwhile.
        dataset = open_builder(builder, what="tiny_imagenet", image="image", label="label")
    return dataclasses.replace(dataset, wnids=dataset.names, names=tuple(builder.info.metadata["names"]))


class TinyImageNet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]
    """The builder; class indices follow the sorted WordNet ids.

    It is not registered with TFDS, where `tfds:tiny_imagenet` would exist only once this module is imported.
    """

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, archive: Path | None = None, **options: Any) -> None:
        """Reads `archive`, or downloads the zip if it is None; `options` go to the base class."""
        super().__init__(**options)
        self._archive = archive

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
            license="ImageNet terms: non-commercial research",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # TFDS asks for the classes before they are known; they are set once the zip is open.
        archive = Archive(self._archive or _download(dl_manager))
        layout = read_layout(archive)
        self.info.features["label"].names = layout.wnids
        self.info.metadata["names"] = layout.names
        return {
            "train": _examples(archive, layout.train),
            "validation": _examples(archive, layout.validation),
        }

    def _generate_examples(self, **_: Any) -> Any:
        raise NotImplementedError  # TFDS demands it, but `_split_generators` returns the examples themselves


def _download(dl_manager: tfds.download.DownloadManager) -> Path:
    try:
        return Path(dl_manager.download(URL))
    except Exception as error:  # An error of the network or the disk, or a wrong checksum
        raise UserError(
            f"tiny_imagenet: {URL} cannot be downloaded ({one_line(error)}); "
            "fetch it by other means and give it as --data.archive"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The content of the zip.

    Attributes:
      wnids: sorted WordNet ids.
      names: class names in the same order.
      train: the WordNet id of each training picture, by its path in the zip.
      validation: the WordNet id of each validation picture, by its path in the zip.
    """

    wnids: list[str]
    names: list[str]
    train: dict[PurePosixPath, str]
    validation: dict[PurePosixPath, str]


def read_layout(archive: Archive) -> Layout:
    """Reads and checks the official layout; pictures may be missing, but no file or folder of it.

    Raises:
      UserError: a part of the layout is missing, or two parts contradict each other.
    """
    # The classes, which the zip does not list in order.
    roots = [path.parent for path in archive.files if path.name == "wnids.txt"]
    if len(roots) != 1:
        raise _wrong(archive, f"it has {len(roots)} files called wnids.txt instead of one")
    root = roots[0]
    wnids = sorted(_lines(archive, root / "wnids.txt"))
    if len(set(wnids)) != len(wnids) or len(wnids) < 2:
        raise _wrong(archive, "wnids.txt must list two or more classes, each once")

    # The training pictures; their folders must be the classes.
    train = {
        path: path.relative_to(root).parts[1]
        for path in _pictures(archive)
        if path.is_relative_to(root / "train") and path.parent.name == "images"
    }
    for wnid in set(wnids) ^ set(train.values()):
        raise _wrong(archive, f"class {wnid} is not both in wnids.txt and a folder of train/ with images/")

    return Layout(
        wnids=wnids,
        names=readable_names(wnids, _lines(archive, root / "words.txt")),
        train=train,
        validation=_validation(archive, root / "val", wnids),
    )


def readable_names(wnids: list[str], words: list[str]) -> list[str]:
    """Returns the first synonym of each class, followed by its WordNet id where several classes share the synonym.

    Args:
      wnids: WordNet ids of the classes.
      words: lines of words.txt: an id, a tab, and synonyms separated by commas.
    """
    synonyms = dict(line.split("\t", 1) for line in words if "\t" in line)
    first = {wnid: synonyms.get(wnid, wnid).split(",")[0].strip() for wnid in wnids}
    count = Counter(first.values())
    return [name if count[name] == 1 else f"{name} ({wnid})" for wnid, name in first.items()]


def _validation(archive: Archive, folder: PurePosixPath, wnids: list[str]) -> dict[PurePosixPath, str]:
    """Returns the WordNet id of each validation picture; a file beside their folder lists the classes."""
    # The list and the folder must agree, in both directions.
    pictures = {path for path in _pictures(archive) if path.parent == folder / "images"}
    labels: dict[PurePosixPath, str] = {}
    for line in _lines(archive, folder / "val_annotations.txt"):
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if folder / "images" / name not in pictures or wnid not in wnids:
            raise _wrong(archive, f"val_annotations.txt names a picture or class that is not there: {line[:80]!r}")
        labels[folder / "images" / name] = wnid
    for path in sorted(pictures - labels.keys()):
        raise _wrong(archive, f"val_annotations.txt does not name {path.name}")
    if not labels:
        raise _wrong(archive, "there are no validation pictures")
    return labels


def _pictures(archive: Archive) -> Iterator[PurePosixPath]:
    """Yields the files of the zip without what systems leave behind, such as those where it was made again on macOS."""
    return (path for path in archive.files if not is_junk(path.name))


def _lines(archive: Archive, path: PurePosixPath) -> list[str]:
    if path not in archive.files:
        raise _wrong(archive, f"{path} is missing")
    text = archive.read(path).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _wrong(archive: Archive, what: str) -> UserError:
    return UserError(
        f"{archive.path} does not have the layout of tiny-imagenet-200.zip: {what}; give the official zip as "
        "--data.archive, or class folders as --data.source"
    )


def _examples(archive: Archive, wnids: dict[PurePosixPath, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, wnid in wnids.items():
        yield str(path), {"id": str(path), "image": io.BytesIO(archive.read(path)), "label": wnid}
