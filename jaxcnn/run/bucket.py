"""A copy of a workdir in a bucket, from which its run is resumed on another machine.

Orbax writes checkpoints on disks, and in no store of the protocol of S3. So they are written to the workdir, and each
file is copied to an object by TensorStore, the library below Orbax. An object appears whole or not at all. A checkpoint
in the bucket counts if it has its checksums, which are sent last.
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from jaxcnn.disk import remedy, write_atomically
from jaxcnn.errors import TemporaryError, UserError
from jaxcnn.paths import check_address
from jaxcnn.run.seal import NAME as SEAL
from jaxcnn.terminal import stage, warn

CONNECTIONS = 8
"""Files that are sent or fetched at once."""
RETRIES = 4
"""How often a request that failed is repeated, the first time after a second and then after ever longer times."""
STALLED = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}
"""Variables by which a request fails that no byte comes or goes of for so long. By itself it would wait for ever."""

_UNANSWERED = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
"""How TensorStore's errors begin after the last attempt."""
_STEP = re.compile(r"checkpoints/(\d+)/.+")
_REGION = "us-east-1"
"""The region of stores that have none, as others of this protocol than Amazon's."""


class Bucket:
    """The copy of a workdir.

    Args:
      address: such as `s3://BUCKET/FOLDER`.

    Raises:
      UserError: it is not the address of a folder in a bucket.
    """

    def __init__(self, address: str):
        self._address = check_address(address, option="bucket")
        self._opened: Any = None
        self._sent: dict[str, tuple[int, int]] = {}

    def restore(self, folder: Path) -> None:
        """Fetches the files of a run into a workdir without one, if the bucket has a checkpoint.

        Raises:
          TemporaryError: the bucket does not answer.
          UserError: the bucket cannot be read, or holds another run than the workdir, or a later checkpoint of it; or
            the workdir cannot be written.
        """
        try:
            names = self._list()
            steps = _whole_steps(names)
            if not steps or "config.json" not in names:
                return
            if (folder / "config.json").exists():
                self._check_same_run(folder, last_step=max(steps))
            else:
                with stage(f"fetching the run in {self._address}"):
                    self._fetch_all(_to_copy(names, steps), folder)
        except UserError:
            raise
        except Exception as error:  # TensorStore raises any kind.
            kind = TemporaryError if str(error).startswith(_UNANSWERED) else UserError
            raise kind(
                f"bucket is {self._address!r}, which cannot be read: {_reason(error)}; check its name, the network and "
                "the credentials"
            ) from error

    def update(self, folder: Path) -> None:
        """Sends the files of a workdir that are new or have changed, and removes checkpoints that it has no more.

        If that fails, it prints a warning, and the next call sends what is missing.
        """
        try:
            files = _files(folder)
            changed = [name for name, stamp in files.items() if self._sent.get(name) != stamp]
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                # First the records: as after a crash, they may say more than the last checkpoint.
                for group in _in_order(changed):
                    list(pool.map(lambda name: self._send(name, folder, files[name]), group))
            self._remove_outdated(_whole_steps(files))
        except Exception as error:  # Whatever is wrong with a store, the training goes on.
            warn(
                f"{self._address} lacks a part of the run: {_reason(error)}; it is sent with the next checkpoint, or "
                "by the same command"
            )

    def _check_same_run(self, folder: Path, *, last_step: int) -> None:
        """Raises a `UserError` unless the workdir has the run of the bucket, up to its last checkpoint."""
        log = folder / "metrics.jsonl"
        here, there = log.read_bytes() if log.exists() else b"", self._read(log.name)
        # The first record has the time of the start.
        if here.partition(b"\n")[0] != there.partition(b"\n")[0]:
            raise UserError(
                f"{self._address} has another run than {folder}; give another --workdir or another --bucket"
            )
        if last_step > max(_whole_steps(_files(folder)), default=-1):
            raise UserError(
                f"{self._address} has a checkpoint of step {last_step}, which {folder} lacks; give another --workdir "
                "to resume from there"
            )

    def _fetch_all(self, names: Iterable[str], folder: Path) -> None:
        """Fetches files, the settings last: what has them is a run. After a failure, none of them is left."""
        *others, last = sorted(names, key=lambda name: name == "config.json")
        try:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(lambda name: self._fetch(name, folder), others))
            self._fetch(last, folder)
        except BaseException:
            # A run that is begun here without the bucket would take its records for its own.
            for path in [folder / name for name in self._sent]:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # It holds more, or is the workdir.
                    path.parent.rmdir()
            self._sent.clear()
            raise

    def _remove_outdated(self, kept: set[int]) -> None:
        """Removes checkpoints from the bucket, their checksums first: what remains of one counts no more."""
        outdated = [name for name in self._list() if _step_of(name) not in (None, *kept)]
        for name in sorted(outdated, key=lambda name: not _is_seal(name)):
            self._store.write(name, None).result()
            self._sent.pop(name, None)

    def _send(self, name: str, folder: Path, stamp: tuple[int, int]) -> None:
        self._store.write(name, (folder / name).read_bytes()).result()
        self._sent[name] = stamp

    def _fetch(self, name: str, folder: Path) -> None:
        path = folder / name
        content = self._read(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise UserError(
                f"the run in {self._address} cannot be written to {folder}: {error.strerror}; "
                f"{remedy(error) or 'check the disk'} and run the same command again"
            ) from error
        self._sent[name] = _stamp(path)

    def _read(self, name: str) -> bytes:
        content: bytes = self._store.read(name).result().value
        return content

    def _list(self) -> list[str]:
        """Returns the names of all objects; those that are no files of a workdir are left out."""
        names = [key.decode() for key in self._store.list().result()]
        return [name for name in names if _is_inside(name)]

    @property
    def _store(self) -> Any:
        """The objects, a `tensorstore.KvStore`, by the path of their file in the workdir."""
        if self._opened is None:
            import tensorstore

            for name, value in STALLED.items():
                os.environ.setdefault(name, value)
            retries = {"max_retries": RETRIES}
            context = tensorstore.Context({"s3_request_retries": retries, "gcs_request_retries": retries})
            self._opened = tensorstore.KvStore.open(_describe_store(self._address), context=context).result()
        return self._opened


def _describe_store(address: str) -> dict[str, Any]:
    """Returns what TensorStore calls a folder in a bucket."""
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    found: dict[str, Any] = {"bucket": bucket, "path": path.rstrip("/") + "/"}
    if scheme == "gs":
        return found | {"driver": "gcs"}
    found["driver"] = "s3"
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _REGION
        found |= {"endpoint": endpoint, "aws_region": region}
    # With these variables, the library would still print that there is no file with credentials.
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found["aws_credentials"] = {"type": "environment"}
    return found


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the files of a workdir to copy, with what shows that one has changed.

    Locks, files that are being written, and unfinished and damaged checkpoints are left out.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: _stamp(path) for name, path in paths.items() if _is_inside(name)}
    return {name: found[name] for name in _to_copy(found, _whole_steps(found))}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_inside(name: str) -> bool:
    """Returns whether a name stays inside the workdir and no part of it is hidden."""
    return bool(name) and not any(part.startswith(".") or part == "/" for part in PurePosixPath(name).parts)


def _is_seal(name: str) -> bool:
    return _step_of(name) is not None and name.count("/") == 2 and name.endswith(f"/{SEAL}")


def _step_of(name: str) -> int | None:
    """Returns the step of the checkpoint that a file belongs to; None if it belongs to none."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def _whole_steps(names: Iterable[str]) -> set[int]:
    """Returns the steps of the checkpoints that have their checksums."""
    return {step for name in names if _is_seal(name) and (step := _step_of(name)) is not None}


def _to_copy(names: Iterable[str], steps: set[int]) -> list[str]:
    """Returns the names without files in `checkpoints` that belong to a checkpoint of none of the steps."""
    return [name for name in names if not name.startswith("checkpoints/") or _step_of(name) in steps]


def _in_order(names: Iterable[str]) -> list[list[str]]:
    """Groups names as they have to be sent: records, then each checkpoint, and its checksums last."""
    groups: dict[tuple[int, bool], list[str]] = {}
    for name in names:
        step = _step_of(name)
        groups.setdefault((-1 if step is None else step, _is_seal(name)), []).append(name)
    return [groups[key] for key in sorted(groups)]


def _reason(error: Exception) -> str:
    """Returns the first line of an error, without where in TensorStore's source it was raised."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r" \[.*", "", line)[:200]
