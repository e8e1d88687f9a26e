"""The checksum at the end of a model file, by which the server recognises a damaged one."""

import hashlib
import json

import onnx

KEY = "checksum"
"""The metadata key of the checksum."""


def seal(content: bytes) -> bytes:
    """Returns a serialized model with its SHA-256 as the last entry of its metadata.

    protobuf reads messages that follow one another as one, so that the checksum covers all bytes before the entry, and
    whoever checks it need not parse the file.
    """
    checksum = onnx.StringStringEntryProto(key=KEY, value=json.dumps(hashlib.sha256(content).hexdigest()))
    entry: bytes = onnx.ModelProto(metadata_props=[checksum]).SerializeToString()
    return content + entry
