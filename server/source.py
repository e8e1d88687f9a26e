"""Where the model files are: JAXCNN_MODEL names local files, or remote ones with their checksums."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import SplitResult, unquote, urlsplit

_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")

# What follows each scheme. `hf:` is Hugging Face's hub.
_FORMS = {
    "https": "https://HOST/PATH",
    "s3": "s3://BUCKET/KEY",
    "gs": "gs://BUCKET/OBJECT",
    "hf": "hf://OWNER/REPOSITORY/FILE",
}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")

# Parts of a URL that may hold credentials.
_USER = re.compile(r"(?<=://)[^/?#]+(?=@)")
_QUERY = re.compile(r"(?<=://)([^?#]*\?)[^#]+")

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)")


def parse_models(text: str) -> dict[str, "Source"]:
    """Parses JAXCNN_MODEL: files, folders of ONNX files, or NAME=FILE, separated by commas.

    A file that exists may have commas and equals signs in its path.

    Returns:
      The sources by the names of the models: by default a file's name without its suffix.

    Raises:
      ValueError: the text is invalid, or two models have one name; the message ends a sentence that begins with "set it
        to".
    """
    sources: dict[str, Source] = {}
    for item in [text] if os.path.isfile(text) else text.split(","):
        for name, source in _parse_item(item.strip()):
            if name in sources:
                raise ValueError(f"files of different names, or NAME=FILE where names are the same: two are {name!r}")
            sources[name] = source
    return sources


def _parse_item(item: str) -> Iterator[tuple[str, "Source"]]:
    """Yields the name and the source of a file, or of every ONNX file in a folder."""
    if not item:
        raise ValueError("one or more files, separated by commas")
    named = None if os.path.exists(item) else _NAMED.fullmatch(item)
    if named is None and os.path.isdir(item):
        paths = sorted(path for path in Path(item).glob("[!.]*.onnx") if path.is_file())
        if not paths:
            raise ValueError(f"a folder that has files ending in .onnx: {item!r} has none that can be seen")
        yield from ((path.stem, Source(path=path)) for path in paths)
        return
    source = Source.parse(named[2] if named else item)
    yield (named[1] if named else PurePath(source.name).stem), source


@dataclass(frozen=True)
class Source:
    """A model file that the operator named. Use `Source.parse`."""

    path: Path | None = None
    """The file, if it is local."""
    url: SplitResult | None = None
    """The URL without its fragment, if the file is remote."""
    sha256: str | None = None
    """The checksum that the file must have, in hexadecimal; always there if it is remote."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Parses a path, or a URL whose fragment is `#sha256=HEXADECIMAL`, optional for `file:`.

        Raises:
          ValueError: it is neither; the message ends a sentence that begins with "set it to".
        """
        scheme = _SCHEME.match(text)
        # A path whose name has a colon begins with another letter or a slash, as on the command lines of scp and ssh.
        if scheme is None or (scheme[1] not in (*_FORMS, "file") and "://" not in text):
            return cls(path=Path(text))
        if scheme[1] not in (*_FORMS, "file"):
            raise ValueError(f"a path, or a URL of one of the schemes file, {', '.join(_FORMS)}")
        url = urlsplit(text)
        sha256 = _SHA256.fullmatch(url.fragment)
        if url.fragment and sha256 is None:
            raise ValueError("a URL that ends in #sha256= and the 64 lowercase hexadecimal digits of the checksum")
        digest = sha256[1] if sha256 else None
        if url.scheme == "file":
            if url.netloc not in ("", "localhost") or not url.path.strip("/") or url.query:
                raise ValueError("file:///PATH, a path on this machine")
            return cls(path=Path(unquote(url.path)), sha256=digest)
        _check_remote(url, digest)
        return cls(url=url._replace(fragment=""), sha256=digest)

    @property
    def name(self) -> str:
        """The file's name."""
        if self.path is not None:
            return self.path.name
        assert self.url is not None
        return unquote(self.url.path).rpartition("/")[2]

    def __str__(self) -> str:
        """The path, or the URL without credentials."""
        return str(self.path) if self.url is None else hide_secrets(self.url.geturl())


def hide_secrets(text: str) -> str:
    """Returns a text with `***` in place of the users, passwords and queries of URLs."""
    return _QUERY.sub(r"\1***", _USER.sub("***", text))


def _check_remote(url: SplitResult, digest: str | None) -> None:
    form = _FORMS[url.scheme]
    least = 3 if url.scheme == "hf" else 2
    parts = [url.netloc, *unquote(url.path).split("/")[1:]]
    if len(parts) < least or not all(parts) or ".." in parts:
        raise ValueError(f"{form}#sha256=CHECKSUM")
    if digest is None:
        raise ValueError(f"{form}#sha256=CHECKSUM: a remote file is only used if its checksum is known")
