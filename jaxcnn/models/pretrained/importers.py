"""Finds the weights that others trained and that a setting such as `init_from` names.

To add an importer:

1. Write `read_SOMETHING(source: str) -> Pretrained | None` in a new file. It returns None, quickly, if the text
   does not name weights of its kind, and raises UserError in one line if it does but they cannot be read.
2. It reads tensors by `pth.read_pth` or safetensors, never by unpickling, and renames them by `layout.to_variables`.
3. It fills in the whole record: what is not known stays empty, and nothing is guessed.
4. Enter it in `IMPORTERS` below. The first that knows a text reads it.
5. Test it against the original implementation, with random weights: see `tests/models/pretrained/`.
"""

from collections.abc import Callable

from jaxcnn.models.pretrained.files import read_file
from jaxcnn.models.pretrained.hub import PREFIX, read_hub
from jaxcnn.models.pretrained.packages import PACKAGES, read_package
from jaxcnn.models.pretrained.record import Pretrained

IMPORTERS: tuple[Callable[[str], Pretrained | None], ...] = (read_package, read_hub, read_file)
"""Each reads one kind of source."""

NAMES = tuple(PACKAGES)
"""The names without a path or a prefix, which messages suggest."""
PATTERN = f"{PREFIX}NAME"
"""The names of weights on Hugging Face's hub, as messages suggest them."""


def read_pretrained(source: str) -> Pretrained | None:
    """Reads weights that others trained; None if no importer knows `source`.

    Raises:
      UserError: an importer knows it, but the weights are not installed, cannot be read or are damaged.
    """
    return next((found for read in IMPORTERS if (found := read(source)) is not None), None)
