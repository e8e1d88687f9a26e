"""The SHA-256 of files that browsers keep, computed again only if another file has taken the place of one."""

import asyncio
from io import BufferedReader
from pathlib import Path

from server import files
from server.files import Signature
from server.model import Model


class Digests:
    """Signature and SHA-256 of each file, as last hashed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Signature, str]] = {}
        # One request hashes a file for all that wait for it.
        self._hashing = asyncio.Lock()

    def note(self, model: Model) -> None:
        """Takes the digest of a model's file, which was hashed when it was loaded."""
        self._known[model.path] = model.signature, model.digest

    async def find(self, path: Path, file: BufferedReader, signature: Signature) -> str:
        """Returns the SHA-256 of an open file, in hexadecimal, and rewinds the file.

        Args:
          path: where it was opened.
          file: the file.
          signature: its signature when it was opened.
        """
        async with self._hashing:
            known = self._known.get(path)
            # A touched file, or a copy, has a new signature but the same content.
            if known is None or known[0] != signature:
                known = self._known[path] = signature, await asyncio.to_thread(files.digest, file)
            return known[1]
