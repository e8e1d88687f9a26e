"""JAXCNN_MODEL: which texts name a local file, which a remote one, and which are refused."""

from pathlib import Path

import pytest

from server import settings
from server.errors import StartError
from server.source import Source

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "path", "sha256"),
    [
        ("model.onnx", "model.onnx", None),
        ("/srv/a b.onnx", "/srv/a b.onnx", None),
        ("runs/12:30/model.onnx", "runs/12:30/model.onnx", None),
        ("C:\\models\\model.onnx", "C:\\models\\model.onnx", None),
        ("odd:name.onnx", "odd:name.onnx", None),
        ("a#b.onnx", "a#b.onnx", None),
        ("file:///srv/a%20b.onnx", "/srv/a b.onnx", None),
        (f"file:///srv/model.onnx#sha256={DIGEST}", "/srv/model.onnx", DIGEST),
        (f"file://localhost/srv/model.onnx#sha256={DIGEST}", "/srv/model.onnx", DIGEST),
    ],
)
def test_local_files(text, path, sha256):
    assert Source.parse(text) == Source(path=Path(path), sha256=sha256)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://example.org/a/birds.onnx?token=secret", "birds.onnx"),
        ("https://me:secret@example.org:8443/birds.onnx", "birds.onnx"),
        ("https://me:secret@x:secret@example.org/birds.onnx", "birds.onnx"),
        ("s3://bucket/folder/birds.onnx", "birds.onnx"),
        ("gs://bucket/wild%20birds.onnx", "wild birds.onnx"),
        ("hf://owner/repository@v1/onnx/birds.onnx", "birds.onnx"),
    ],
)
def test_remote_files_have_a_checksum_and_a_name(text, name):
    source = Source.parse(f"{text}#sha256={DIGEST}")
    assert (source.path, source.sha256, source.name) == (None, DIGEST, name)
    assert "secret" not in str(source)
    with pytest.raises(ValueError, match="a remote file is only used if its checksum is known"):
        Source.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://example.org/model.onnx", "one of the schemes file, https, s3, gs, hf"),
        ("ftp://example.org/model.onnx", "one of the schemes file, https, s3, gs, hf"),
        ("file://other/model.onnx", "file:///PATH, a path on this machine"),
        ("file:///?version=1", "file:///PATH, a path on this machine"),
        ("https://example.org/model.onnx#sha256=ABC", "#sha256= and the 64 lowercase hexadecimal digits"),
        ("file:///model.onnx#md5=00", "#sha256= and the 64 lowercase hexadecimal digits"),
        ("s3://bucket", "s3://BUCKET/KEY#sha256=CHECKSUM"),
        ("s3://bucket/", "s3://BUCKET/KEY#sha256=CHECKSUM"),
        ("https:///model.onnx", "https://HOST/PATH#sha256=CHECKSUM"),
        ("https://host/a/../../model.onnx", "https://HOST/PATH#sha256=CHECKSUM"),
        ("gs://bucket/..", "gs://BUCKET/OBJECT#sha256=CHECKSUM"),
        ("gs://bucket/a%2F..", "gs://BUCKET/OBJECT#sha256=CHECKSUM"),
        ("hf://owner/model.onnx", "hf://OWNER/REPOSITORY/FILE#sha256=CHECKSUM"),
    ],
)
def test_others_are_refused_without_showing_what_they_hold(text, complaint):
    pinned = text if "#" in text else f"{text}#sha256={DIGEST}" if not text.startswith("file") else text
    with pytest.raises(StartError) as caught:
        settings.from_environment({"JAXCNN_MODEL": pinned})
    assert str(caught.value).startswith("JAXCNN_MODEL is invalid: set it to ")
    assert complaint in str(caught.value)
    assert text not in str(caught.value)
