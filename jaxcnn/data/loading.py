"""From a configuration to a data set."""

import dataclasses
import functools
import shutil
from pathlib import Path

import numpy as np

from jaxcnn.config import DataConfig
from jaxcnn.data.cache import entry_path, load_cached
from jaxcnn.data.dataset import Dataset
from jaxcnn.data.encoded_cache import count_encoded, load_encoded
from jaxcnn.data.entry import lock_path, locked, remove_unfinished
from jaxcnn.data.resize import Resize
from jaxcnn.data.shards import has_array_record
from jaxcnn.data.source import Source
from jaxcnn.data.sources.digits import digits_source
from jaxcnn.data.sources.folder import find_path, folder_source
from jaxcnn.data.sources.parquet import find_parquet, parquet_source
from jaxcnn.data.sources.tars import find_tars, tar_source
from jaxcnn.errors import UserError
from jaxcnn.paths import named_path

MOST_DECODED = 100 * 10**9
"""Bytes that decoded pictures may take with `--data.store auto`."""

HELD_OUT = 0.1
"""Share of the training pictures held out where the source has no validation pictures."""


def load(config: DataConfig, *, hold_out: bool = True) -> Dataset:
    """Loads a data set, after decoding or copying its pictures into the cache if they are not there yet.

    Args:
      config: the source, the size of the pictures, and which of them are held out.
      hold_out: False leaves all training pictures in `train`, so that a class may have a single picture; the source's
        own validation pictures remain if `validation_fraction` is None.

    Raises:
      UserError: the source does not exist or cannot be read, a picture is damaged, the cache cannot be written, or
        there are too few pictures.
    """
    # A cache among the pictures would be taken for a class at the next start.
    cache_dir = named_path(config.cache_dir, option="data.cache_dir")
    check_outside_pictures(cache_dir, config.source, option="data.cache_dir")
    dataset = _load_store(config, find_source(config), cache_dir)

    # The cache holds the split of the source: holding out only selects rows.
    if config.validation_fraction is not None or len(dataset.validation) == 0:
        if hold_out:
            dataset = dataset.hold_out(fraction=config.validation_fraction or HELD_OUT, seed=config.split_seed)
        else:
            dataset = dataset.without_validation()

    # Checked last: unlabelled validation pictures do no harm where others are held out in their place.
    for split, name, advice in (
        (dataset.train, "training", "choose another --data.source"),
        (dataset.validation, "validation", "set --data.validation_fraction"),
    ):
        if np.any(split.labels < 0):
            raise UserError(f"some {name} pictures of {dataset.name} have no label; {advice}")
    return dataset


def _load_store(config: DataConfig, source: Source, cache_dir: Path) -> Dataset:
    """Loads the pictures from the kind of store that the settings name, or that suits them."""
    # Listing the pictures may take long, and is done once.
    source = dataclasses.replace(source, open=functools.cache(source.open))
    size, resize, reason = config.image_size, Resize.of(config), ""
    if config.store == "auto":
        reason = _too_large(source, size=size, resize=resize, cache_dir=cache_dir)
    load_stored = load_encoded if reason or config.store == "encoded" else load_cached
    dataset = load_stored(source, size=size, resize=resize, cache_dir=cache_dir)
    assert dataset.store is not None
    return dataclasses.replace(dataset, store=dataclasses.replace(dataset.store, reason=reason))


def _too_large(source: Source, *, size: int, resize: Resize, cache_dir: Path) -> str:
    """Returns why the pictures are too large to be kept decoded; empty if they are not, or if they are so already."""
    entry = entry_path(source, size=size, resize=resize, cache_dir=cache_dir)
    if entry.exists() or not has_array_record():
        return ""
    # What is encoded already need not be listed to be counted.
    count = count_encoded(source, cache_dir=cache_dir)
    if count is None:
        # Other processes may be downloading the pictures, or filling the disk with them.
        with locked(entry, lock_path(source, cache_dir)):
            if entry.exists():
                return ""
            remove_unfinished(entry)
            count = source.open().count
    need = count * resize.stored(size) ** 2 * 3
    # The folder may not exist yet.
    free = shutil.disk_usage(next(path for path in (cache_dir, *cache_dir.parents) if path.exists())).free
    if need <= min(MOST_DECODED, free):
        return ""
    limit = f"the limit is {MOST_DECODED / 1e9:g} GB" if need > MOST_DECODED else f"{free / 1e9:,.1f} GB are free"
    return f"decoded they would take {need / 1e9:,.1f} GB, {limit}"


def is_named(source: str) -> bool:
    """Returns whether a `--data.source` is the name of a data set, not a path."""
    return source in ("digits", "tiny_imagenet") or source.startswith("tfds:")


def check_source(config: DataConfig) -> None:
    """Raises UserError if the folder or zip of the pictures does not exist, before anything long begins."""
    if not is_named(config.source):
        find_path(config.source)


def check_outside_pictures(path: Path, source: str, *, option: str) -> None:
    """Raises UserError if a folder to write to is inside the folder of pictures, where it would become a class.

    Args:
      path: the folder to write to, which need not exist.
      source: the `--data.source`. An empty one, or the name of a data set, is no folder.
      option: what names the folder to write to.
    """
    if not source or is_named(source):
        return
    pictures = named_path(source, option="data.source")
    if pictures.is_dir() and path.resolve().is_relative_to(pictures.resolve()):
        raise UserError(
            f"{option} {str(path)!r} lies in data.source {source!r}, among the pictures; give another --{option}"
        )


def find_source(config: DataConfig) -> Source:
    """Finds the source that `config` names, without reading pictures; imports only the libraries that it needs.

    Raises:
      UserError: the source does not exist or cannot be read.
    """
    kind, _, name = config.source.partition(":")
    cache_dir = named_path(config.cache_dir, option="data.cache_dir")
    data_dir = cache_dir / "tfds"
    if config.source == "digits":
        return digits_source()
    # TFDS takes seconds to import, and is missing where only the exporter is installed.
    if config.source == "tiny_imagenet":
        from jaxcnn.data.sources.tiny_imagenet import tiny_imagenet_source

        archive = named_path(config.archive, option="data.archive") if config.archive is not None else None
        return tiny_imagenet_source(archive, data_dir=data_dir)
    if kind == "tfds":
        from jaxcnn.data.sources.tfds import tfds_source

        return tfds_source(name, data_dir=data_dir)
    return shard_source(find_path(config.source)) or folder_source(config.source, cache_dir=cache_dir)


def shard_source(path: Path) -> Source | None:
    """Finds the pictures of a tar or Parquet file, or of a folder of them; returns None for anything else.

    Raises:
      UserError: a file or folder cannot be read.
    """
    if tars := find_tars(path):
        return tar_source(path, tars)
    if files := find_parquet(path):
        return parquet_source(path, files)
    return None
