"""Downloads a remote model file into the cache; nothing is used before its checksum is verified."""

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import os
import ssl
import string
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit

from server import files
from server.errors import StartError
from server.source import Source

# How long a host may stay silent, and a whole download may take.
_SILENT_SECONDS = 30
_TOTAL_SECONDS = 600

# Waits before the second and the third attempt.
_RETRY_SECONDS = (1, 3)

# What the names of unfinished downloads begin with.
_PART = ".part-"

_MAX_BYTES = 4 * 2**30
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 1 << 20

# Google's metadata server, which every machine on its cloud reaches, has the token of the machine's service account.
_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105

_log = logging.getLogger(__name__)


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _FetchError(Exception):
    """A download that failed, with what to do; trying again may help if `is_passing`."""

    def __init__(self, reason: str, *, is_passing: bool = False) -> None:
        super().__init__(reason)
        self.is_passing = is_passing


def fetch(source: Source, cache: Path) -> Path:
    """Returns the local file of a source, downloading it if it is remote and not in the cache.

    A cached file is hashed again each time, so a damaged one is replaced.

    Raises:
      StartError: the file cannot be had, or its checksum is wrong.
    """
    if source.path is not None:
        return source.path
    assert source.sha256 is not None
    # The folder is named for the content, the file as at its source, which gives the model its name.
    target = cache / source.sha256 / source.name
    if _has_digest(target, source.sha256):
        return target
    for wait in (*_RETRY_SECONDS, None):
        try:
            _download(source, target)
            return target
        except _FetchError as failure:
            if not failure.is_passing or wait is None:
                raise StartError(f"The model {source} cannot be served: {failure}") from None
            _log.warning("the model %s cannot be fetched yet, trying again in %d s: %s", source, wait, failure)
            time.sleep(wait)
    raise AssertionError


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        with files.open_file(path) as file:
            return files.digest(file) == sha256
    except OSError:
        return False


def _download(source: Source, target: Path) -> None:
    """Downloads to a temporary file beside the target, and gives it its name only if the checksum is right."""
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target.parent)
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=_PART)
        except OSError as error:
            raise _cache_failure(target, error) from None
        stack.callback(lambda: Path(name).unlink(missing_ok=True))
        file = stack.enter_context(os.fdopen(descriptor, "wb"))
        # Read, hash and write in one go.
        found = _copy(source, file, target)
        if found != source.sha256:
            raise _FetchError(
                f"its sha256 is {found}. Set JAXCNN_MODEL to the checksum of the file that you mean; if that is right,"
                " the file has been changed."
            )
        try:
            os.replace(name, target)
        except OSError as error:
            raise _cache_failure(target, error) from None


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have downloaded; a download that another process has not given up is younger."""
    for path in folder.glob(f"{_PART}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _TOTAL_SECONDS:
                path.unlink()


def _copy(source: Source, file: IO[bytes], target: Path) -> str:
    """Copies the remote file, and returns its SHA-256."""
    digest, received, deadline = hashlib.sha256(), 0, time.monotonic() + _TOTAL_SECONDS
    with _network_failures(), _open(source) as (stream, length):
        most = _MAX_BYTES if length is None else length
        while chunk := stream.read(_CHUNK_BYTES):
            received += len(chunk)
            if received > most:
                raise _FetchError(f"it has more than {most} bytes. Check the URL.")
            if time.monotonic() > deadline:
                raise _FetchError(f"it did not arrive within {_TOTAL_SECONDS} s. Use a host that is closer or faster.")
            digest.update(chunk)
            try:
                file.write(chunk)
            except OSError as error:
                raise _cache_failure(target, error) from None
    if length is not None and received < length:
        raise _FetchError(f"only {received} of {length} bytes arrived. Try again.", is_passing=True)
    try:
        file.flush()
    except OSError as error:
        raise _cache_failure(target, error) from None
    return digest.hexdigest()


def _cache_failure(target: Path, error: OSError) -> _FetchError:
    return _FetchError(
        f"it cannot be written to {target.parent} ({error.strerror}). Set JAXCNN_CACHE to a folder with room that the"
        " server's user may write to."
    )


@contextlib.contextmanager
def _network_failures() -> Iterator[None]:
    """Turns errors of the network into failures that say what to do."""
    try:
        yield
    except HTTPError as error:
        error.close()
        # Raised when it has followed as many as it may.
        if error.code in (301, 302, 303, 307, 308):
            raise _FetchError(f"its host redirects more than {_MAX_REDIRECTS} times. Check the URL.") from None
        is_passing = error.code >= 500 or error.code in (408, 425, 429)
        raise _FetchError(
            f"its host responds {error.code} {error.reason}. {_advice(error.code)}", is_passing=is_passing
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise _FetchError(f"its host has no valid certificate ({error.verify_message}). Check the URL.") from None
    except TimeoutError:
        raise _FetchError(f"its host was silent for {_SILENT_SECONDS} s. Try again.", is_passing=True) from None
    except (http.client.InvalidURL, ValueError):
        # The text of the error may have a password or a token.
        raise _FetchError(
            "its URL is invalid. Check it, and the variable that sets another endpoint, if there is one."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _FetchError(f"its host has no valid certificate ({reason.verify_message}). Check the URL.") from None
        text = " ".join(str(getattr(reason, "strerror", None) or reason).split()) or type(reason).__name__
        raise _FetchError(
            f"its host cannot be reached ({text}). Check the URL and the network.", is_passing=True
        ) from None


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Give the server's account the right to read it."
    return "Check the URL." if status < 500 else "Try again."


@contextlib.contextmanager
def _open(source: Source) -> Iterator[tuple[_Stream, int | None]]:
    """Opens the remote file, and yields it with its length, if its host says it."""
    assert source.url is not None
    if source.url.scheme == "s3":
        with _open_s3(source.url.netloc, unquote(source.url.path)[1:]) as opened:
            yield opened
        return
    with _open_url(source) as response:
        length = response.headers.get("Content-Length")
        yield response, int(length) if length is not None and length.isdigit() else None


def _open_url(source: Source) -> Any:
    assert source.url is not None
    bucket, path = source.url.netloc, source.url.path
    if source.url.scheme == "https":
        # The standard library would take what precedes the host for a part of its name.
        user, _, host = bucket.rpartition("@")
        basic = f"Basic {base64.b64encode(unquote(user).encode()).decode()}" if user else None
        return _get(source.url._replace(netloc=host).geturl(), authorization=basic)
    if source.url.scheme == "hf":
        # The revision is part of the repository's name: OWNER/REPOSITORY@REVISION.
        repository, _, name = path[1:].partition("/")
        repository, _, revision = repository.partition("@")
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        url = f"{endpoint}/{bucket}/{repository}/resolve/{revision or 'main'}/{name}"
        secret = os.environ.get("HF_TOKEN", "").strip()
        return _get(url, authorization=f"Bearer {secret}" if secret else None)
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    url = f"{endpoint}/{bucket}/{quote(unquote(path)[1:])}"
    try:
        return _get(url)
    except HTTPError as error:
        # Only private objects need the token of the machine's service account.
        if error.code not in (401, 403) or (token := _google_token()) is None:
            raise
        error.close()
        return _get(url, authorization=f"Bearer {token}")


def _google_token() -> str | None:
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    request = urllib.request.Request(f"http://{host}{_TOKEN_PATH}", headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=3) as response:  # noqa: S310
            return str(json.load(response)["access_token"])
    except (OSError, ValueError, KeyError):
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, none of which leaves HTTPS."""

    max_redirections = max_repeats = _MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Returns the next request, or raises a `_FetchError`."""
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            fp.close()
            raise _FetchError("its host redirects from https to another scheme. Check the URL.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _get(url: str, *, authorization: str | None = None) -> Any:
    # A space or a letter such as é in the path of a URL is sent escaped.
    url = quote(url, safe=string.punctuation)
    request = urllib.request.Request(url, headers={"User-Agent": "jaxcnn", "Accept-Encoding": "identity"})  # noqa: S310
    if authorization:
        # Not sent on to whatever host a redirect names.
        request.add_unredirected_header("Authorization", authorization)
    return urllib.request.build_opener(_Redirects).open(request, timeout=_SILENT_SECONDS)


@contextlib.contextmanager
def _open_s3(bucket: str, key: str) -> Iterator[tuple[_Stream, int | None]]:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
    except ImportError:
        raise _FetchError("s3: needs the package boto3. Install it, or use an https: URL of the object.") from None
    config = Config(connect_timeout=_SILENT_SECONDS, read_timeout=_SILENT_SECONDS)
    try:
        response = boto3.client("s3", config=config).get_object(Bucket=bucket, Key=key)
        with contextlib.closing(response["Body"]) as body:
            yield body, response["ContentLength"]
    except NoCredentialsError:
        raise _FetchError("there are no AWS credentials. Run it with a role that may read the object.") from None
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        code = error.response["Error"]["Code"]
        raise _FetchError(f"S3 responds {status} {code}. {_advice(status)}", is_passing=status >= 500) from None
    except HTTPClientError as error:
        raise _FetchError(f"S3 cannot be reached ({type(error).__name__}). Try again.", is_passing=True) from None
    except BotoCoreError as error:
        raise _FetchError(f"boto3 cannot read it ({error}). Check AWS_REGION and the credentials.") from None
