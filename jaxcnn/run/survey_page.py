"""The findings about a folder of pictures as one self-contained HTML page, with duplicates side by side."""

import base64
import io
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from jaxcnn.bulk.picture_files import PictureFile
from jaxcnn.data.decoding import decode
from jaxcnn.data.duplicates import Group
from jaxcnn.data.resize import Resize
from jaxcnn.run.page import render_page
from jaxcnn.survey import ShardPicture, Survey

GROUPS = 60
"""Most groups of each kind on the page."""

MEMBERS = 8
"""Most pictures of a group that are shown."""

LISTED = 100
"""Most lines of a list on the page."""

SIDE = 128
"""Side of a picture on the page in pixels."""


def render(found: Survey, *, page: Path, facts: Sequence[str], oddities: Mapping[str, Sequence[str]]) -> str:
    """Returns the page as HTML. Names of files and classes are escaped.

    Args:
      found: the findings.
      page: where the page will be, for links to the files.
      facts: what all pictures have in common, in a line each.
      oddities: lines about single files and classes, by title.
    """
    sections = {
        "The same picture, or nearly, in several splits": found.leaks,
        "The same picture, or nearly, in several classes": found.contradictions,
        "Duplicates": found.duplicates,
    }
    shown = {
        title: (len(groups), [_show_group(found, group, page) for group in groups[:GROUPS]])
        for title, groups in sections.items()
    }
    return render_page(
        "survey.html",
        found=found,
        facts=facts,
        train=found.counts("train"),
        validation=found.counts("validation"),
        sections=shown,
        oddities={title: (len(lines), lines[:LISTED]) for title, lines in oddities.items()},
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
                "png": _encode(seen.file),
                "name": seen.file.name.removeprefix(f"{found.where}/"),
                "href": link_to(seen.file, page),
                "place": ", ".join(filter(None, (seen.place.name, seen.place.split))),
                "size": f"{seen.width}x{seen.height}",
            }
            for seen in members
        ],
    }


def link_to(file: PictureFile | ShardPicture, page: Path) -> str | None:
    """Returns the address of a file as seen from a page; None for one in a zip or the like."""
    if not file.is_on_disk:
        return None
    return urllib.parse.quote(os.path.relpath(file.name, page.parent).encode("utf-8", "surrogateescape"))


def _encode(file: PictureFile | ShardPicture) -> str:
    """Returns a picture as a data URL."""
    pixels = decode(file.read(), size=SIDE, resize=Resize(mode="pad"), where=file.name)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
