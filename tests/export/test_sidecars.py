"""The files beside an exported model: description, Hugging Face's settings, example."""

import hashlib
import json
import shutil
from functools import partial

import numpy as np
import onnxruntime as ort
import pytest
from runs import PICTURES

import export
import export.workdir
from export.sidecars import read_pictures
from server.errors import StartError
from server.model import load


def test_the_description_beside_the_file_has_its_metadata(file):
    described = json.loads(file.with_suffix(".json").read_text())
    content = file.read_bytes()
    assert (described["bytes"], described["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert described["inputs"] == [{"name": "image", "type": "uint8", "shape": ["batch", 8, 8, 3]}]
    assert [output["name"] for output in described["outputs"]] == ["logits", "probabilities"]
    hidden = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in hidden.items()}.items() <= described.items()


def test_the_server_refuses_a_damaged_file(file, tmp_path):
    content = file.read_bytes()
    checksum = json.loads(file.with_suffix(".json").read_text())["checksum"]
    assert content.endswith(checksum.encode() + b'"')
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(content)
    assert load(copy, max_batch=2, threads=1).names == ("cat", "dög", "eel")
    place = len(content) // 2
    copy.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(StartError):
        load(copy, max_batch=2, threads=1)


def test_what_hugging_face_reads(file):
    config = json.loads((file.with_suffix("") / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dög", "2": "eel"}
    assert config["label2id"]["eel"] == 2
    processor = json.loads((file.with_suffix("") / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 8, "width": 8}
    assert not processor["do_rescale"]
    assert not processor["do_normalize"]


def test_the_example_holds_what_the_file_says(file):
    with np.load(file.with_suffix("") / "example.npz") as example:
        arrays = dict(example)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": arrays.pop("image")})
    assert sorted(arrays) == ["logits", "probabilities"]
    np.testing.assert_allclose(arrays["logits"], logits, rtol=1e-5)
    np.testing.assert_allclose(arrays["probabilities"], probabilities, rtol=1e-5)


def test_the_example_of_real_pictures_is_kept_for_the_next_export(pictured):
    export.export_workdir(pictured)
    with np.load(pictured / "model" / "example.npz") as example:
        np.testing.assert_array_equal(example["image"], PICTURES)
    assert "5 real ones" in (pictured / "model" / "README.md").read_text()


def test_real_pictures_stay_in_the_run_folder(pictured, tmp_path):
    file = export.export_workdir(pictured, tmp_path / "given.onnx")
    with np.load(tmp_path / "given" / "example.npz") as example:
        assert not np.array_equal(example["image"][:4], PICTURES[:4])
    assert json.loads(file.with_suffix(".json").read_text())["example_pictures"] == "noise"
    assert "5 real ones" in (tmp_path / "given" / "README.md").read_text()


def test_an_example_of_noise_is_not_used_as_real_pictures(run, file):
    card = file.with_suffix("") / "README.md"
    assert "on random pictures:" in card.read_text()
    export.export_workdir(run)
    assert "on random pictures:" in card.read_text()


def test_a_damaged_example_is_ignored(pictured, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pictured, run)
    (run / "model" / "example.npz").write_bytes(b"PK\x03\x04 cut short")
    assert export.export_workdir(run).exists()


def test_no_flipped_bit_of_the_example_is_an_error(pictured, tmp_path):
    """zlib, zipfile and NumPy raise errors of seven kinds for these."""
    run = tmp_path / "run"
    shutil.copytree(pictured, run)
    example = run / "model" / "example.npz"
    content = example.read_bytes()
    read = partial(read_pictures, run / "model.onnx", PICTURES.shape[1])
    np.testing.assert_array_equal(read(), PICTURES)
    ignored = 0
    # All of the directory at the end, which says how the rest is stored, and a tenth of the rest.
    end = content.index(b"PK\x01\x02")
    for place in (*range(0, end, 10), *range(end, len(content))):
        for bit in range(8):
            example.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            found = read()
            assert found is None or np.array_equal(found, PICTURES)
            ignored += found is None
    assert ignored
