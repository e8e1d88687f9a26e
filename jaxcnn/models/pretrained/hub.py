"""Weights of timm on Hugging Face's hub, by names such as `timm:resnet50.a1_in1k`."""

import contextlib
import dataclasses
import functools
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from jaxcnn.disk import remedy
from jaxcnn.errors import UserError
from jaxcnn.models.pretrained.files import CONFIG, describe, read_safetensors
from jaxcnn.models.pretrained.record import Origin, Pretrained
from jaxcnn.models.published import PUBLISHED

PREFIX = "timm:"
"""How the text of a setting starts that names a repository of timm. `@REVISION` may follow the name."""
OWNER = "timm/"
"""The account on the hub that has the repositories."""
WEIGHTS, CARD = "model.safetensors", "README.md"
"""The files with the tensors and with the license."""

_SECONDS = 10.0
"""How long to wait for the hub."""

ARCHITECTURES = {
    found.weights.removeprefix(OWNER).partition(".")[0]: found.weights
    for found in PUBLISHED.values()
    if found.weights.startswith(OWNER)
}
"""What timm calls the networks that jaxcnn has, and the repository that stands for a name without a tag."""


class Download(NamedTuple):
    """Files of one revision of a repository, in the cache of the package huggingface_hub.

    Attributes:
      weights: the tensors; the file's folder has the name of the revision.
      card: the model card; None if the repository has none.
    """

    weights: Path
    card: Path | None


def read_hub(source: str) -> Pretrained | None:
    """Reads weights of timm from Hugging Face's hub or its cache; None if `source` does not start with `timm:`.

    Raises:
      UserError: jaxcnn lacks the network, the package huggingface_hub is not installed, or the weights cannot be
        downloaded or are damaged.
    """
    if not source.startswith(PREFIX):
        return None
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    repository = _find_repository(name)
    found = _download(repository, revision or "main")
    digest = _check_file(found.weights)
    tensors = read_safetensors(found.weights)
    if tensors is None:
        raise UserError(f"{found.weights} is not a safetensors file; delete it, and it is downloaded again")
    origin = Origin(
        host="Hugging Face", name=repository, version=found.weights.parent.name, file=WEIGHTS, sha256=digest
    )
    pretrained = describe(tensors, path=found.weights, origin=origin)
    return dataclasses.replace(pretrained, license=_read_license(found.card) or pretrained.license)


def _find_repository(name: str) -> str:
    """Returns the repository of a name in timm, which may lack the tag; raises UserError if its network is unknown."""
    architecture, _, tag = name.partition(".")
    if architecture not in ARCHITECTURES or not re.fullmatch(r"\w*", tag):
        raise UserError(
            f"init_from is {PREFIX + name!r}, but of timm's networks jaxcnn has only {', '.join(ARCHITECTURES)}; give "
            f"one of these, with or without a tag, such as {PREFIX}{ARCHITECTURES['resnet50'].removeprefix(OWNER)}"
        )
    return f"{OWNER}{name}" if tag else ARCHITECTURES[architecture]


@functools.cache
def _download(repository: str, revision: str) -> Download:
    """Downloads what is not in the cache yet. Once in a process, so that a run sees one revision only.

    Raises:
      UserError: as `read_hub`.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise UserError(
            f"{repository} is on Hugging Face's hub, which needs the package huggingface_hub; run "
            "`pip install huggingface_hub`"
        ) from error
    try:
        is_offline = not _is_reachable(repository, revision)
        download = functools.partial(hf_hub_download, repository, local_files_only=is_offline)
        weights = Path(download(WEIGHTS, revision=revision))
        # The other files of the same revision, even if the branch moves on meanwhile. A repository may lack them.
        commit, card = weights.parent.name, None
        with contextlib.suppress(errors.RemoteEntryNotFoundError):
            download(CONFIG, revision=commit)
        with contextlib.suppress(errors.LocalEntryNotFoundError if is_offline else errors.RemoteEntryNotFoundError):
            card = Path(download(CARD, revision=commit))
    # A connection that breaks raises what depends on the package's version of httpx.
    except Exception as error:
        raise UserError(_explain(error, repository, revision)) from error
    return Download(weights, card)


def _is_reachable(repository: str, revision: str) -> bool:
    """Returns whether the hub answers; without an answer, hf_hub_download itself would retry for half a minute.

    Raises:
      HfHubHTTPError: it answers that the repository, the revision or its weights do not exist or are not public.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repository, WEIGHTS, revision=revision), timeout=_SECONDS)
    except errors.HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return False
    except errors.HFValidationError:
        raise
    # What is raised without a connection depends on the package's version of httpx.
    except Exception:
        return False
    return True


def _explain(error: Exception, repository: str, revision: str) -> str:
    """Returns what is wrong and what to do about it, in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"Hugging Face's hub cannot be reached, and {repository} is not in its cache; run the command once on a "
            f"machine with a connection and copy its cache, or download {WEIGHTS} and {CONFIG} elsewhere and give the "
            "path of the first"
        )
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} asks you to accept its terms; do so on its page on the hub, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {repository} on Hugging Face's hub; look up the tag in its list of timm's models"
    if isinstance(error, errors.RevisionNotFoundError | errors.HFValidationError):
        return (
            f"{repository} has no revision {revision!r} on Hugging Face's hub; leave out @{revision}, or give another"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repository} has no {WEIGHTS}; give another of timm's models"
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    advice = f"{remedy(error)} and try again" if isinstance(error, OSError) and remedy(error) else "try again"
    return f"{repository} cannot be downloaded from Hugging Face's hub: {reason}; {advice}"


def _check_file(path: Path) -> str:
    """Returns the checksum of weights; raises UserError if it is not the one that their name in the cache is."""
    blob = path.resolve()
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != digest:
        raise UserError(f"{blob} is damaged: its sha256 is {digest}; delete it, and it is downloaded again")
    return digest


def _read_license(card: Path | None) -> str:
    """Returns the license that a model card names; empty if it names none."""
    if card is None:
        return ""
    from huggingface_hub import ModelCard

    data = ModelCard.load(card, ignore_metadata_errors=True).data
    return str(data.get("license_name") or data.get("license") or "")
