"""The model files that a soak serves, swaps and damages, and which answers are right at a time."""

import os
import re
import time
from pathlib import Path
from random import Random

from export.seal import seal
from tests.server.conftest import NAMES, build_model

SHIPPED = Path(__file__).parents[2] / "server" / "models" / "tiny_imagenet.int8.onnx"
SEALED = seal(SHIPPED.read_bytes())
"""The same with the checksum that a newer version of `python -m export` writes at the end."""


class Models:
    """A folder with two models: the shipped `tiny`, and `colours`, whose class names end in the number of its version.

    Attributes:
      setting: the value of JAXCNN_MODEL.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._replaced_at: list[float] = []
        self.replace_colours()
        self.replace_tiny()
        self.setting = f"{folder / 'tiny.onnx'},{folder / 'colours.onnx'}"

    def replace_colours(self) -> None:
        """Moves the next version into place."""
        names = [f"{name}{len(self._replaced_at)}" for name in NAMES]
        new = build_model(self._folder / "new", metadata={"names": names})
        os.replace(new, self._folder / "colours.onnx")
        self._replaced_at.append(time.monotonic())

    def replace_tiny(self) -> None:
        """Moves a copy of the shipped model into place, which the server loads as any other new file."""
        (self._folder / "new").write_bytes(SEALED)
        os.replace(self._folder / "new", self._folder / "tiny.onnx")

    def damage(self, random: Random) -> None:
        """Moves a file into place that must not be served."""
        new = self._folder / "new"
        name = random.choice(["tiny", "colours"])
        whole = (self._folder / f"{name}.onnx").read_bytes()
        kind = random.choice(["cut short", "of zeros", "inverted", "of another contract"])
        if kind == "inverted":
            # The checksum at the end of an exported file shows this.
            name, middle = "tiny", len(SEALED) // 2
            inverted = bytes(255 - byte for byte in SEALED[middle : middle + 400])
            new.write_bytes(SEALED[:middle] + inverted + SEALED[middle + 400 :])
        elif kind == "of another contract":
            build_model(new, metadata={"names": NAMES[:3]})
        else:
            # As a full disk leaves a copy, or a file system after a power cut.
            new.write_bytes(whole[: len(whole) // 2] if kind == "cut short" else bytes(len(whole)))
        os.replace(new, self._folder / f"{name}.onnx")

    def is_right(self, answer: str, expected: str, since: float) -> bool:
        """Whether a class name is that of a version that may have been served at the time `since` or later."""
        if expected not in NAMES:
            return answer == expected
        match = re.fullmatch(r"([a-z]+)(\d+)", answer)
        if match is None or match[1] != expected or (version := int(match[2])) >= len(self._replaced_at):
            return False
        later = self._replaced_at[version + 1 : version + 2]
        return not later or later[0] > since
