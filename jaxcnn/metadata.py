"""What an exported file says about itself: text by name, each in JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn import config as settings
from jaxcnn.config import Config
from jaxcnn.data import Fingerprint
from jaxcnn.errors import UserError
from jaxcnn.run.workdir import parse_fingerprint


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file, read strictly: it may be of anyone.

    Attributes:
      path: the file.
      values: JSON by name.
      command: what makes such files.
    """

    path: Path
    values: Mapping[str, str]
    command: str

    def read(self, key: str, kind: type) -> Any:
        """A value.

        Raises:
          UserError: there is none, or it is of another kind.
        """
        if key not in self.values:
            raise self.refusal(f"its metadata has no {key}")
        try:
            value = json.loads(self.values[key])
        except (ValueError, RecursionError):
            raise self.refusal(f"its metadata has a {key} that is not JSON") from None
        if not isinstance(value, kind):
            raise self.refusal(f"its metadata has a {key} that is {type(value).__name__}, not {kind.__name__}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, as `read`."""
        return tuple(map(str, self.read(key, list)))

    def config(self) -> Config:
        """The settings of the run that the file is of, as `read`."""
        value = self.read("config", dict)
        try:
            return settings.from_json(json.dumps(value))
        except UserError as error:
            raise self.refusal(str(error)) from None

    def pictures(self) -> Fingerprint | None:
        """Fingerprint of the split that the model was trained on; None if the file does not record it."""
        if "pictures" not in self.values:
            return None
        try:
            return parse_fingerprint(self.read("pictures", dict))
        except ValueError as error:
            raise self.refusal(f"its metadata has pictures of which {error}") from None

    def refusal(self, what: str) -> UserError:
        """The error that says why the file is not taken."""
        return UserError(f"{self.path} was not made by `{self.command}`: {what}")
