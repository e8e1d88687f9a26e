"""The findings about a folder of pictures as one self-contained HTML page, with duplicates side by side."""

import base64
import io
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.data.decoding import decode
from jaxcnn.data.duplicates import Group
from jaxcnn.data.resize import GRAY, Resize
from jaxcnn.run.page import render_page
from jaxcnn.survey import Seen, ShardPicture, Survey

GROUPS = 60
"""Most groups of each kind on the page."""

MEMBERS = 8
"""Most pictures of a group that are shown."""

LISTED = 100
"""Most lines of a list on the page."""

SIDE = 128
"""Longer side of a picture on the page in pixels."""


def render(
    found: Survey,
    *,
    page: Path,
    summary: str,
    facts: Sequence[str],
    oddities: Mapping[str, Sequence[tuple[str, str]]],
) -> str:
    """Returns the page as HTML. Names of files and classes are escaped.

    Args:
      found: the findings.
      page: where the page will be, for links to the files.
      summary: how many pictures and classes there are.
      facts: what all pictures have in common, in a line each.
      oddities: lines about single files and classes by title, each a name and what follows it.
    """
    return render_page(
        "survey.html",
        found=found,
        summary=summary,
        facts=facts,
        train=found.counts("train"),
        validation=found.counts("validation"),
        listed=LISTED,
        sections=[
            {
                "title": title,
                "advice": advice,
                "count": len(groups),
                "groups": [_show_group(found, group, page) for group in groups[:GROUPS]],
            }
            for title, advice, groups in _sort_groups(found)
        ],
        oddities={
            title: (len(lines), [(name.removeprefix(f"{found.where}/"), rest) for name, rest in lines[:LISTED]])
            for title, lines in oddities.items()
        },
    )


def _sort_groups(found: Survey) -> Iterator[tuple[str, str, Sequence[Group]]]:
    """Yields the kinds of duplicates, worst first: a title, what they mean, and the groups."""
    yield (
        "The same picture, or nearly, in several splits",
        "They spoil every measurement: remove all but one of each group.",
        found.leaks,
    )
    yield (
        "The same picture, or nearly, in several classes",
        "Where the pixels are the same, a label is wrong; where pictures look alike, one may be.",
        found.contradictions,
    )
    shown = {id(group) for group in (*found.leaks, *found.contradictions)}
    yield (
        "Other duplicates",
        "In one class and one split, they give a picture more weight.",
        [group for group in found.duplicates if id(group) not in shown],
    )


def _show_group(found: Survey, group: Group, page: Path) -> dict[str, Any]:
    """Returns how near a group is, and its pictures with their places."""
    members = [found.pictures[row] for row in group.rows[:MEMBERS]]
    return {
        "same": group.distance is None,
        "distance": group.distance,
        "more": len(group.rows) - len(members),
        "pictures": [
            {
                "png": _encode(seen),
                "name": seen.file.name.removeprefix(f"{found.where}/"),
                "href": link_to(seen.file, page),
                "place": list(filter(None, (seen.place.name, seen.place.split))),
                "size": f"{seen.width:,} \N{MULTIPLICATION SIGN} {seen.height:,}",
            }
            for seen in members
        ],
    }


def link_to(file: PictureFile | ShardPicture, page: Path) -> str | None:
    """Returns the address of a file as seen from a page; None for one in a zip or the like."""
    if not file.is_on_disk:
        return None
    return urllib.parse.quote(os.path.relpath(file.name, page.parent).encode("utf-8", "surrogateescape"))


def _encode(seen: Seen) -> str:
    """Returns a picture in its own shape as a data URL."""
    pixels = decode(seen.file.read(), size=SIDE, resize=Resize(mode="pad"), where=seen.file.name)
    buffer = io.BytesIO()
    Image.fromarray(_trim(pixels, seen.width, seen.height)).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _trim(
    square: UInt8[np.ndarray, "side side 3"], width: int, height: int
) -> UInt8[np.ndarray, "trimmed_height trimmed_width 3"]:
    """Removes the bars that made a picture of a width and a height a square: on the page they would be a part of it."""
    side = len(square)
    # Its file may hold it turned; then the bars are on the other sides.
    for lengths in ((height, width), (width, height)):
        rows, columns = (max(int(length * side / max(lengths) + 0.5), 1) for length in lengths)
        top, left = (side - rows) // 2, (side - columns) // 2
        bars = square.copy()
        bars[top : top + rows, left : left + columns] = GRAY
        if (bars == GRAY).all():
            return square[top : top + rows, left : left + columns]
    return square
