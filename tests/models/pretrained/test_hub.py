"""Weights of timm on Hugging Face's hub, from a server on this machine with the hub's paths and headers."""

import dataclasses
import errno
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from jaxcnn.errors import UserError
from jaxcnn.models.pretrained import hub, read_pretrained
from jaxcnn.models.published import PUBLISHED
from jaxcnn.run.lineage import describe_pretrained

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
COMMITS = ["0123456789abcdef" * 2 + "01234567", "f" * 40]
TENSORS = {
    "blocks.11.attn.qkv.weight": np.arange(576 * 192, dtype=np.float32).reshape(576, 192),
    "head.bias": np.zeros(1000, np.float32),
}
DESCRIPTION = {
    "architecture": "vit_tiny_patch16_224",
    "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9},
}
CARD = "---\ntags:\n- timm\nlicense: cc-by-nc-4.0\n---\n# Model card\n"


@dataclasses.dataclass
class Hub:
    """The repositories: their files by name, the latest commit last, and the requests so far.

    If it `cuts`, it resets connections in the middle of a file.
    """

    files: dict[str, dict[str, bytes]]
    commits: list[str] = dataclasses.field(default_factory=lambda: COMMITS[:1])
    requests: list[str] = dataclasses.field(default_factory=list)
    endpoint: str = ""
    cuts: bool = False

    def find(self, repository: str, revision: str, file: str) -> tuple[bytes, str] | str:
        """Returns the content and the commit, or the code of an error."""
        commit = self.commits[-1] if revision == "main" else revision
        if repository == "timm/resnet18.gated":
            return "GatedRepo"
        if repository not in self.files:
            return "RepoNotFound"
        if commit not in self.commits:
            return "RevisionNotFound"
        return (self.files[repository][file], commit) if file in self.files[repository] else "EntryNotFound"


def handler(served: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            parts = self.path.strip("/").split("/")
            # The package asks for further lists, which are not needed.
            found: tuple[bytes, str] | str = "EntryNotFound"
            if len(parts) == 5:
                served.requests.append(f"{self.command} {self.path}")
                found = served.find(f"{parts[0]}/{parts[1]}", parts[3], parts[4])
            self.send_response(404 if isinstance(found, str) else 200)
            if isinstance(found, str):
                self.send_header("X-Error-Code", found)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, commit = found
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if served.cuts else content)
            if self.command == "GET" and served.cuts:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    return Handler


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub with one repository, and an empty cache."""
    files = {
        "model.safetensors": safetensors.numpy.save(TENSORS, {"format": "pt"}),
        "config.json": json.dumps(DESCRIPTION).encode(),
        "README.md": CARD.encode(),
    }
    found = Hub({f"timm/{NAME}": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    # What HF_ENDPOINT and HF_HOME set before the package is imported.
    monkeypatch.setattr(constants, "ENDPOINT", found.endpoint)
    template = found.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    hub._download.cache_clear()
    yield found
    server.shutdown()
    server.server_close()
    hub._download.cache_clear()


def test_weights_are_known_by_repository_revision_checksum_and_license(served):
    found = read_pretrained(f"timm:{NAME}")
    assert (found.model.name, found.side, found.crop, found.dataset) == ("vit_tiny", 224, 0.9, "ImageNet-1k")
    assert (found.license, len(found.names)) == ("cc-by-nc-4.0", 1000)
    digest = hashlib.sha256(served.files[f"timm/{NAME}"]["model.safetensors"]).hexdigest()
    weights = f"timm/{NAME} {COMMITS[0]} on Hugging Face, model.safetensors, sha256 {digest}"
    assert str(found.origin) == weights
    training = describe_pretrained(found)
    assert training.recipe["weights"] == weights
    assert training.license.startswith("weights: cc-by-nc-4.0; pictures: ")


def test_the_cache_is_enough_without_a_connection(served, monkeypatch):
    read_pretrained(f"timm:{NAME}")
    asked = len(served.requests)
    hub._download.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_pretrained(f"timm:{NAME}").origin.version == COMMITS[0]
    assert len(served.requests) == asked


def test_a_revision_stays_what_it_is(served):
    served.commits.append(COMMITS[1])
    assert read_pretrained(f"timm:{NAME}").origin.version == COMMITS[1]
    assert read_pretrained(f"timm:{NAME}@{COMMITS[0]}").origin.version == COMMITS[0]


def test_all_files_are_of_one_revision(served):
    find, moved = served.find, []

    def find_and_move(repository, revision, file):
        moved.append((revision, file))
        return find(repository, revision, file)

    served.find = find_and_move
    read_pretrained(f"timm:{NAME}")
    assert {revision for revision, file in moved if file != "model.safetensors"} == {COMMITS[0]}


def test_a_process_asks_once(served):
    read_pretrained(f"timm:{NAME}")
    asked = len(served.requests)
    read_pretrained(f"timm:{NAME}")
    assert len(served.requests) == asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "resnet34.a1_in1k",
            "init_from is 'timm:resnet34.a1_in1k', but of timm's networks jaxcnn has only resnet18, res",
        ),
        ("", "init_from is 'timm:', but of timm's networks jaxcnn has only "),
        ("resnet18.a/../b", "init_from is 'timm:resnet18.a/../b', but of timm's networks jaxcnn has only "),
        ("resnet18.a2_in1k", "there is no timm/resnet18.a2_in1k on Hugging Face's hub; look up the tag"),
        ("resnet18.gated", "timm/resnet18.gated asks you to accept its terms; do so on its page on the hub"),
        (f"{NAME}@beef", f"timm/{NAME} has no revision 'beef' on Hugging Face's hub; leave out @beef, or give another"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(served, source, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_pretrained(f"timm:{source}")
    assert "\n" not in str(caught.value)


def test_the_refusal_lists_the_networks_and_an_example(served):
    with pytest.raises(UserError) as caught:
        read_pretrained("timm:resnet34")
    for name in (found.weights.removeprefix("timm/") for found in PUBLISHED.values() if found.weights[:5] == "timm/"):
        assert name.partition(".")[0] in str(caught.value)
    assert str(caught.value).endswith("with or without a tag, such as timm:resnet50.a1_in1k")
    assert not served.requests


def test_a_name_without_a_tag_is_the_published_one(served):
    assert read_pretrained("timm:vit_tiny_patch16_224").origin.name == f"timm/{NAME}"


def test_a_repository_without_description_and_card(served):
    files = served.files[f"timm/{NAME}"]
    del files["README.md"]
    assert read_pretrained(f"timm:{NAME}").license == ""
    hub._download.cache_clear()
    del files["model.safetensors"]
    served.commits.append(COMMITS[1])
    with pytest.raises(UserError, match=re.escape(f"timm/{NAME} has no model.safetensors; give another")):
        read_pretrained(f"timm:{NAME}")


def test_without_a_connection_the_message_says_what_to_do(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^Hugging Face's hub cannot be reached, and timm/.* is not in its cache; run"):
        read_pretrained(f"timm:{NAME}")


def test_without_a_server_the_same_is_said_at_once(served, monkeypatch):
    read_pretrained(f"timm:{NAME}")
    hub._download.cache_clear()
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert read_pretrained(f"timm:{NAME}").license == "cc-by-nc-4.0"
    # The package itself would wait between its tries, half a minute in all.
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(UserError, match=r"^Hugging Face's hub cannot be reached, and timm/resnet18.a1_in1k is not in "):
        read_pretrained("timm:resnet18.a1_in1k")
    assert waits == []


def test_a_connection_that_breaks_is_one_line(served):
    served.cuts = True
    with pytest.raises(UserError, match=rf"^timm/{NAME} cannot be downloaded from Hugging Face's hub: .*; try again$"):
        read_pretrained(f"timm:{NAME}")
    served.cuts = False
    assert read_pretrained(f"timm:{NAME}").origin.version == COMMITS[0]


def test_a_full_disk_is_named_with_what_to_do(served, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"hub: \[Errno 28\] No space left on device; make room and try again$"):
        read_pretrained(f"timm:{NAME}")


def test_without_the_package_the_message_names_it(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub; run `pip install huggingface_hub`$"):
        read_pretrained(f"timm:{NAME}")


def test_a_damaged_file_in_the_cache_is_named(served):
    read_pretrained(f"timm:{NAME}")
    blob = hub._download(f"timm/{NAME}", "main").weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"is damaged: its sha256 is [0-9a-f]{64}; delete it, and it is downloaded"):
        read_pretrained(f"timm:{NAME}")
