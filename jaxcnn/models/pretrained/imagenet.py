"""The classes of ImageNet-1k."""

import csv
import functools
from pathlib import Path

NAME = "ImageNet-1k"
TERMS = "ImageNet terms: non-commercial research"


@functools.cache
def imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names and the WordNet ids of the 1,000 classes, in the order in which all networks have them."""
    with (Path(__file__).parent / "imagenet.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return tuple(name for _, name in rows), tuple(wnid for wnid, _ in rows)
