"""Image classification data sets of TensorFlow Datasets, prepared and read without TensorFlow."""

import contextlib
import difflib
import importlib.util
import io
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import INCOMPLETE_PREFIX
from tensorflow_datasets.core.download import downloader

from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.entry import locked
from jaxcnn.data.pictures import Picture
from jaxcnn.data.shards import allow_open_files
from jaxcnn.data.source import Source
from jaxcnn.data.sources.tensorflow_shim import installed_shim
from jaxcnn.disk import NO_ROOM
from jaxcnn.errors import UserError
from jaxcnn.terminal import console, stage

FILE_FORMAT = "array_record"
"""The only format that TFDS reads without TensorFlow."""

RETRIES = 3
"""Attempts of a download. TFDS makes ten, which take more than three minutes where there is no network."""

CATALOGUE = "https://www.tensorflow.org/datasets/catalog"
"""The names and versions that TFDS knows."""


def tfds_source(name: str, *, data_dir: Path) -> Source:
    """Finds a data set of TFDS by its name, such as `tf_flowers` or `imagenet_resized/64x64:0.1.0`.

    Raises:
      UserError: the data set does not exist, or is not for image classification.
    """
    what = f"tfds:{name}"
    if not name:
        raise UserError(f"data.source is {what!r} without the name of a data set; give tfds:NAME, see {CATALOGUE}")
    if name.startswith("huggingface:"):
        raise UserError(
            f"{what} is on Hugging Face's hub, which is not read; download it into a folder with one folder for each "
            "class, and give that"
        )

    builder = _make_builder(name, what, data_dir)
    image, label = _supervised_keys(builder, what)
    key = f"tfds-{builder.info.full_name.replace('/', '-')}"

    def open_source() -> EncodedDataset:
        with preparing(Path(builder.data_dir), data_dir / f"{key}.lock"):
            # A builder knows only what was prepared when it was made, and another process may have prepared it since.
            return open_builder(_make_builder(name, what, data_dir), what=what, image=image, label=label)

    return Source(key=key, open=open_source)


@contextlib.contextmanager
def preparing(folder: Path, lock: Path) -> Iterator[None]:
    """Removes what killed processes have left of a data set that is not prepared yet, and keeps others from it.

    Args:
      folder: the data set as TFDS prepares it; nothing happens if it exists.
      lock: a file that is locked meanwhile.
    """
    if folder.exists():
        yield
        return
    with locked(folder, lock):
        for left in folder.parent.glob(f"{INCOMPLETE_PREFIX}*_{folder.name}"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _make_builder(name: str, what: str, data_dir: Path) -> Any:
    """Returns the `tfds.core.DatasetBuilder` of a data set; raises UserError if TFDS has no such data set."""
    with _user_errors(what, data_dir, advice=f"see {CATALOGUE} for names and versions"):
        try:
            return tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
        except tfds.core.DatasetNotFoundError as error:
            close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"see {CATALOGUE}"
            raise UserError(f"{what}: TFDS has no such data set; {hint}") from error


def open_builder(builder: Any, *, what: str, image: str, label: str) -> EncodedDataset:
    """Opens a data set, after downloading and preparing it if that is not done yet.

    Args:
      builder: a `tfds.core.DatasetBuilder`.
      what: names the data set in error messages.
      image: the feature that holds the picture.
      label: the feature that holds the class.

    Raises:
      UserError: the data set cannot be downloaded, prepared or read, or has no training pictures.
    """
    if importlib.util.find_spec("array_record") is None:
        raise UserError(
            f"{what} cannot be read here: it needs the package array-record, which is not for Windows; give a folder "
            "or zip of class folders, or use the Windows Subsystem for Linux"
        )
    advice = "try again, or give a folder or zip of class folders as --data.source"
    with _user_errors(what, Path(builder.data_dir), advice=advice):
        with installed_shim(), _one_error(), stage(f"downloading and preparing {what}"):
            builder.download_and_prepare(file_format=FILE_FORMAT)

        # Some data sets declare splits that are empty.
        splits = [name for name, split in builder.info.splits.items() if split.num_examples]
        if "train" not in splits:
            raise UserError(f"{what} has no split 'train', only {', '.join(splits) or 'nothing'}; choose another set")
        validation = next((name for name in ("validation", "test") if name in splits), None)
        allow_open_files()
        return EncodedDataset(
            name=builder.info.name,
            names=tuple(builder.info.features[label].names),
            license=builder.info.redistribution_info.license or "unknown",
            train=_Records.read(builder, "train", what=what, image=image, label=label),
            validation=_Records.read(builder, validation, what=what, image=image, label=label) if validation else (),
            in_records=True,
        )


@dataclass(frozen=True, kw_only=True)
class _Records:
    """The pictures of one prepared split, still encoded."""

    records: Any
    where: str
    image: str
    label: str

    @classmethod
    def read(cls, builder: Any, split: str, *, what: str, image: str, label: str) -> "_Records":
        records = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
        return cls(records=records, where=f"{what} {split}", image=image, label=label)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Picture:
        try:
            record = self.records[index]
        except Exception as error:  # array_record raises RuntimeError and others from C++
            raise UserError(
                f"{self.where} {index} cannot be read ({one_line(error)}); remove the data set from --data.cache_dir, "
                "and it is prepared again"
            ) from error
        # Error messages name a picture by its `id` if the data set has this feature.
        name = record["id"].decode() if isinstance(record.get("id"), bytes) else index
        return Picture(where=f"{self.where} {name}", encoded=record[self.image], label=int(record[self.label]))


def _supervised_keys(builder: Any, what: str) -> tuple[str, str]:
    """Returns the names of the features that hold the picture and its class."""
    # Labels must be classes. Pictures of 8 or 16 bits are stored as files, other ones as arrays.
    features = builder.info.features
    keys = (builder.info.supervised_keys or ("image", "label"))[:2]  # A third one names weights or files
    if (
        len(keys) == 2
        and all(isinstance(key, str) and key in features for key in keys)
        and isinstance(features[keys[0]], tfds.features.Image)
        and np.dtype(features[keys[0]].np_dtype) in (np.uint8, np.uint16)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
        and features[keys[1]].num_classes
    ):
        return keys
    raise UserError(
        f"{what} is not an image classification data set: its features are {', '.join(features)}; choose another"
    )


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Makes a failed download end after `RETRIES` attempts with its error alone, and draws bars on terminals only.

    Both hold for the whole process: `installed_shim` holds the lock.
    """
    tfds.display_progress_bar(console.is_terminal and not console.quiet)
    # Each attempt is a warning. Other downloads go on, and warn, when one has failed: this is never undone.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


@contextlib.contextmanager
def _user_errors(what: str, data_dir: Path, *, advice: str) -> Iterator[None]:
    """Turns any error of a data set's code into a one-line UserError, and keeps its notices out of standard output."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (UserError, OSError) as error:
        if isinstance(error, UserError) or error.errno is not None:  # The cache reports system errors, as a full disk
            raise
        raise UserError(f"{what}: {one_line(error)}; {advice}") from error
    except ImportError as error:
        missing = "TensorFlow" if "tensorflow" in str(error) else one_line(error)
        raise UserError(
            f"{what} cannot be prepared here, its code needs {missing}; prepare it elsewhere with "
            f"file_format='{FILE_FORMAT}' and copy it to {data_dir}, or give a folder or zip of class folders"
        ) from error
    except Exception as error:  # Third-party code raises any kind
        if any(os.strerror(number) in str(error) for number in NO_ROOM):  # `array_record` reports it as text, from C++
            raise UserError(
                f"the disk is full: {what} is prepared in {data_dir}; make room or choose another --data.cache_dir"
            ) from error
        raise UserError(f"{what}: {one_line(error)}; {advice}") from error


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line of at most 500 characters, without a full stop."""
    return " ".join(str(error).split())[:500].rstrip(".") or type(error).__name__
