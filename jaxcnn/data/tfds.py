"""Image classification sets of TensorFlow Datasets, prepared and read without TensorFlow."""

import contextlib
import difflib
import importlib.util
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from jaxcnn.data.source import NO_ROOM, Opened, Picture, Source
from jaxcnn.data.tensorflow_shim import stand_in
from jaxcnn.errors import UserError

FILE_FORMAT = "array_record"  # the one format that TFDS reads without TensorFlow

# TFDS tries ten times, and so takes more than three minutes to find out that there is no network.
downloader.MAX_RETRIES = 3


def tfds_source(name: str, *, data_dir: Path) -> Source:
    """A data set of the TFDS catalogue by name, such as `tf_flowers` or `imagenet_resized/64x64:0.1.0`.

    Raises:
      UserError: no such set, not an image classification set, or one that needs TensorFlow.
    """
    what = f"tfds:{name}"
    with _user_errors(what, data_dir):
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT)
        except tfds.core.DatasetNotFoundError as error:
            close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog"
            raise UserError(f"{what}: TFDS has no such data set; {hint}") from error
    image, label = _supervised_keys(builder, what)
    return Source(
        key=f"tfds-{builder.info.full_name.replace('/', '-')}",
        open=lambda: open_builder(builder, what=what, image=image, label=label),
    )


def open_builder(builder: Any, *, what: str, image: str, label: str) -> Opened:
    """Downloads and prepares a data set where that is not done yet, and opens it.

    Args:
      builder: a `tfds.core.DatasetBuilder`.
      what: names the data set in messages.
      image: the feature that holds the picture.
      label: the feature that holds the class.

    Raises:
      UserError: it cannot be downloaded, prepared or read, or it has no training pictures.
    """
    if importlib.util.find_spec("array_record") is None:
        raise UserError(
            f"{what} cannot be read here: it needs the package array-record, which there is not for Windows; give a "
            "folder or zip of class folders, or use the Windows Subsystem for Linux"
        )
    with _user_errors(what, Path(builder.data_dir)):
        with stand_in():
            builder.download_and_prepare(file_format=FILE_FORMAT)
        splits = [name for name, split in builder.info.splits.items() if split.num_examples]
        if "train" not in splits:
            raise UserError(f"{what} has no split 'train', only {', '.join(splits) or 'nothing'}; choose another set")
        held_out = next((split for split in ("validation", "test") if split in splits), None)
        return Opened(
            name=builder.info.name,
            names=tuple(builder.info.features[label].names),
            license=builder.info.redistribution_info.license or "unknown",
            train=_Records.of(builder, "train", what=what, image=image, label=label),
            validation=_Records.of(builder, held_out, what=what, image=image, label=label) if held_out else (),
        )


@dataclass(frozen=True, kw_only=True)
class _Records:
    """The pictures of one prepared split, still encoded; `id` names a picture in messages if the set has it."""

    source: Any
    where: str
    image: str
    label: str

    @classmethod
    def of(cls, builder: Any, split: str, *, what: str, image: str, label: str) -> "_Records":
        source = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
        return cls(source=source, where=f"{what} {split}", image=image, label=label)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Picture:
        example = self.source[index]
        name = example["id"].decode() if isinstance(example.get("id"), bytes) else index
        return Picture(where=f"{self.where} {name}", encoded=example[self.image], label=int(example[self.label]))


def _supervised_keys(builder: Any, what: str) -> tuple[str, str]:
    """Names of the features that hold the picture and its class."""
    features = builder.info.features
    keys = (builder.info.supervised_keys or ("image", "label"))[:2]  # a third one names the examples' weights or files
    if (
        len(keys) == 2
        and all(isinstance(key, str) and key in features for key in keys)
        and isinstance(features[keys[0]], tfds.features.Image)
        and np.dtype(features[keys[0]].np_dtype) in (np.uint8, np.uint16)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
        and features[keys[1]].num_classes
    ):
        return keys
    raise UserError(f"{what} is no image classification set: its features are {', '.join(features)}; choose another")


@contextlib.contextmanager
def _user_errors(what: str, data_dir: Path) -> Iterator[None]:
    """Turns whatever the code of a data set raises into one line, and keeps its notices out of standard output."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (UserError, OSError) as error:
        if isinstance(error, UserError) or error.errno is not None:  # a full disk, say: the cache words it
            raise
        raise UserError(f"{what}: {one_line(error)}") from error
    except ImportError as error:
        missing = "TensorFlow" if "tensorflow" in str(error) else one_line(error)
        raise UserError(
            f"{what} cannot be prepared here, its code needs {missing}; prepare it elsewhere with "
            f"file_format='{FILE_FORMAT}' and copy it to {data_dir}, or give a folder or zip of class folders"
        ) from error
    except Exception as error:  # third-party code: any kind
        if any(os.strerror(number) in str(error) for number in NO_ROOM):  # told by array_record, in C++
            raise UserError(
                f"the disk is full: {what} is prepared in {data_dir}; make room or choose another --data.cache_dir"
            ) from error
        raise UserError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__
