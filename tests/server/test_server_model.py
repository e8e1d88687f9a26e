import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.seal import seal
from server import files, integrity, model
from server.errors import StartError
from tests.server.conftest import NAMES


def load(path, threads=1):
    return model.load(path, max_batch=4, threads=threads)


def test_runs_what_it_loads(model_path):
    loaded = load(model_path)
    assert (loaded.height, loaded.width) == (8, 8)
    colours = np.array([[250, 0, 0], [0, 0, 250], [0, 0, 0], [240, 240, 240]], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (4, 8, 8, 3)).copy()
    probabilities = loaded.run(images, ["probabilities"])["probabilities"]
    assert [loaded.names[i] for i in probabilities.argmax(1)] == ["red", "blue", "black", "white"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_threads_are_set_and_do_not_spin(model_path):
    options = load(model_path, threads=3).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_one_of_many_runs_takes_one_core(model_path, monkeypatch):
    loaded = load(model_path, threads=3)
    options = loaded.one_core.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    alone, crowded = (loaded.run(images, ["logits"], is_crowded=flag)["logits"] for flag in (False, True))
    np.testing.assert_allclose(alone, crowded, rtol=1e-6)
    assert load(model_path, threads=1).one_core is None


def test_a_model_knows_its_name_digest_and_outputs(model_path):
    loaded = load(model_path)
    assert (loaded.name, loaded.version, loaded.names) == ("colours", "1.2", ("red", "green", "blue", "white", "black"))
    assert loaded.digest == hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert loaded.outputs == {"logits": (5,), "probabilities": (5,)}
    assert not loaded.has_heatmap


def test_pictures_need_not_be_square(model_builder, tmp_path):
    loaded = load(model_builder(tmp_path / "model.onnx", width=6, metadata={"image_size": [8, 6]}))
    assert (loaded.height, loaded.width) == (8, 6)


def test_the_version_is_optional(model_builder, tmp_path):
    assert load(model_builder(tmp_path / "model.onnx", metadata={"version": None})).version == ""


@pytest.mark.parametrize(("max_batch", "counts"), [(4, [4, 3, 2, 1]), (1, [2, 1])])
def test_every_batch_size_is_warmed_up(model_path, monkeypatch, max_batch, counts):
    def counted(loaded, images, outputs, **options):
        tried.append(len(images))
        return run(loaded, images, outputs, **options)

    tried, run = [], model.Model.run
    monkeypatch.setattr(model.Model, "run", counted)
    model.load(model_path, max_batch=max_batch, threads=1)
    assert tried == counts


def test_a_failure_on_one_core_is_one_line_too(model_path, monkeypatch):
    def fail_on_one_core(loaded, images, outputs, *, is_crowded):
        if is_crowded:
            raise RuntimeError("Failed to allocate memory")
        return run(loaded, images, outputs)

    run = model.Model.run
    monkeypatch.setattr(model.Model, "run", fail_on_one_core)
    load(model_path)
    with pytest.raises(StartError, match=r"it fails on a batch of 4 black pictures \(Failed to allocate memory\)"):
        load(model_path, threads=2)


def test_a_heat_map_is_one_more_output(model_builder, tmp_path):
    loaded = load(model_builder(tmp_path / "model.onnx", heatmap=True))
    assert loaded.outputs["heatmap"] == (4, 2)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[0, :2, :4] = [0, 250, 0]
    outputs = loaded.run(image, ["heatmap"])
    assert list(outputs) == ["heatmap"]
    np.testing.assert_allclose(outputs["heatmap"][0], [[1, 0], [0, 0], [0, 0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"metadata": {"names": None}}, "its metadata has no names"),
        ({"metadata": {"names": "red, green"}}, "names that is not JSON"),
        ({"metadata": {"names": "[" * 100_000}}, "names that is not JSON"),
        ({"metadata": {"names": {"0": "red"}}}, "names that are not a list of strings"),
        ({"metadata": {"names": []}}, "names that are not a list of strings"),
        ({"metadata": {"names": [1, 2, 3, 4, 5]}}, "names that are not a list of strings"),
        (
            {"metadata": {"names": ["red", "green", "blue"]}},
            "it has 3 class names, but for 4 pictures logits is float32 [4, 5], not float32 [4, 3]",
        ),
        ({"metadata": {"names": ["a", "b", "c", "d", "\udcff"]}}, "not valid Unicode"),
        ({"metadata": {"image_size": None}}, "its metadata has no image_size"),
        ({"metadata": {"image_size": [64, 64]}}, "image_size is [64, 64], not [8, 8]"),
        *(
            ({"metadata": {"resize": {"mode": "stretch", "filter": "bicubic"} | change}}, f"resize is {{{text}")
            for change, text in (
                ({"mode": "zoom"}, '"mode": "zoom", "filter": "bicubic"}, not a mode of stretch, crop, pad with a'),
                ({"mode": ["crop"]}, '"mode": ["crop"], "filter": "bicubic"}, not a mode of stretch, crop, pad'),
                ({"filter": "lanczos"}, '"mode": "stretch", "filter": "lanczos"}, not a mode of stretch, crop, pad'),
                ({"filter": []}, '"mode": "stretch", "filter": []}, not a mode of'),
                ({"turn": 90}, '"mode": "stretch", "filter": "bicubic", "turn": 90}, not an object with the keys'),
                ({"side": 9}, '"mode": "stretch", "filter": "bicubic", "side": 9}, not with a side for crop alone'),
                ({"mode": "crop"}, '"mode": "crop", "filter": "bicubic"}, not with a side for crop alone'),
                (
                    {"mode": "crop", "side": 7},
                    '"mode": "crop", "filter": "bicubic", "side": 7}, not with a side from 8',
                ),
                ({"mode": "crop", "side": 33}, '"mode": "crop", "filter": "bicubic", "side": 33}, not with a side'),
                ({"mode": "crop", "side": True}, '"mode": "crop", "filter": "bicubic", "side": true}, not with a side'),
            )
        ),
        ({"metadata": {"resize": '"stretch"'}}, 'resize is "stretch", not an object with the keys mode, filter and'),
        (
            {"width": 9, "metadata": {"image_size": [8, 9], "resize": {"mode": "pad", "filter": "bicubic"}}},
            "not stretch, as an input that is not square needs (8 x 9)",
        ),
        ({"input_name": "input"}, "not one `image` of uint8 [batch, height, width, 3]"),
        ({"input_type": TensorProto.FLOAT}, "not one `image` of uint8"),
        ({"side": "side"}, "not one `image` of uint8 [batch, height, width, 3]"),
        ({"batch": 1}, "it fails on a batch of 4"),
        ({"rows": 1}, "it fails on a batch of 4"),
        ({"outputs": ("logits", "scaled")}, "it has no output named probabilities"),
        ({"outputs": ("scores_", "probabilities")}, "it has no output named logits"),
        ({"poison": -1.0}, "its logits for black pictures are not finite"),
        ({"heatmap": True, "heatmap_type": TensorProto.INT32}, "its heatmap is tensor(int32)"),
        ({"heatmap": True, "heatmap_shape": ["batch", 4]}, "not float32 [batch, rows, columns]"),
        ({"heatmap": True, "heatmap_shape": ["batch", 2, 4]}, "cannot be served"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_in_one_line(model_builder, tmp_path, changes, complaint):
    path = model_builder(tmp_path / "model.onnx", **changes)
    with pytest.raises(StartError) as caught:
        load(path)
    message = str(caught.value)
    assert complaint in message
    assert message.startswith(f"The model {path} cannot be served: ")
    assert "python -m export WORKDIR" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08" * 1000])
def test_a_file_that_is_not_a_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StartError, match="cannot be served: onnxruntime cannot open it"):
        load(path)


@pytest.mark.parametrize("text", [b"version", b"probabilities", b"bicubic", b"image"])
def test_a_file_with_text_that_is_not_utf8_is_refused(model_path, tmp_path, text, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(model_path.read_bytes().replace(text, text[:-2] + b"\xff" + text[-1:]))
    with pytest.raises(StartError, match="cannot be served"):
        load(path)
    assert capfd.readouterr() == ("", "")


def test_a_version_that_is_not_unicode_is_refused(model_builder, tmp_path):
    with pytest.raises(StartError, match="version that is not valid Unicode"):
        load(model_builder(tmp_path / "model.onnx", metadata={"version": r'"\udcff"'}))


def test_a_file_removed_while_it_is_read_is_refused(model_path, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(model_path, path)
    opened = model._open

    def open_and_remove(path, *options):
        session = opened(path, *options)
        path.unlink()
        return session

    monkeypatch.setattr(model, "_open", open_and_remove)
    with pytest.raises(StartError, match="is not a file"):
        load(path)


def test_a_file_that_cannot_be_read_is_refused(model_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(model_path), "open", refuse)
    with pytest.raises(StartError, match=r"it cannot be read \(.*Permission denied\)"):
        load(model_path)


def test_a_file_in_a_folder_that_may_not_be_entered_is_refused(locked):
    with pytest.raises(StartError, match=r"it cannot be read \(Permission denied\)\. Set JAXCNN_MODEL to a file that"):
        load(locked / "model.onnx")


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(StartError, match=r"it cannot be read \(File name too long\)\. Set JAXCNN_MODEL to a file that"):
        load(tmp_path / f"{'x' * 300}.onnx")


def test_a_path_that_is_not_utf8_is_refused(model_path, tmp_path):
    path = Path(shutil.copy(model_path, tmp_path / os.fsdecode(b"mod\xff.onnx")))
    with pytest.raises(StartError, match=r"its path is not valid UTF-8\. Rename it"):
        load(path)


@pytest.mark.parametrize("side", [2**20, 2**40])
def test_a_model_whose_input_exceeds_memory_is_refused(model_builder, tmp_path, side):
    path = model_builder(tmp_path / "model.onnx", side=side, metadata={"image_size": [side, side]})
    with pytest.raises(StartError, match="it fails on a batch of 4 black pictures"):
        load(path)


def test_a_file_replaced_while_it_is_read_is_read_again(model_builder, model_path, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    new = model_builder(tmp_path / "new.onnx", metadata={"names": ["a", "b", "c", "d", "e"]})
    shutil.copy(model_path, path)
    opened = model._open

    def open_and_replace(path, *options):
        session = opened(path, *options)
        if new.exists():
            new.replace(path)
        return session

    monkeypatch.setattr(model, "_open", open_and_replace)
    loaded = load(path)
    assert loaded.names == ("a", "b", "c", "d", "e")
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.signature == files.signature_of(path)


def test_a_file_that_keeps_changing_is_refused(model_path, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(model_path, path)
    opened = model._open

    def open_and_write(path, *options):
        session = opened(path, *options)
        path.write_bytes(path.read_bytes() + b"x")
        return session

    monkeypatch.setattr(model, "_open", open_and_write)
    with pytest.raises(StartError, match="cannot be served"):
        load(path)


def test_a_truncated_file_is_refused(model_path, tmp_path):
    whole = model_path.read_bytes()
    path = tmp_path / "model.onnx"
    for end in range(10, len(whole) - 1, len(whole) // 12):
        path.write_bytes(whole[:end])
        with pytest.raises(StartError, match="cannot be served"):
            load(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(StartError, match=r"is not a file: set JAXCNN_MODEL"):
            load(path)


def test_names_may_be_in_any_language(model_builder, tmp_path):
    names = ["rouge", "зелёный", "青", "white", "🖤"]
    for text in (names, json.dumps(names, ensure_ascii=False)):
        assert load(model_builder(tmp_path / "model.onnx", metadata={"names": text})).names == tuple(names)


# Damage


def test_the_checksum_at_the_end_of_a_file_finds_every_damaged_byte(model_path, tmp_path):
    whole = seal(model_path.read_bytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(whole)
    assert load(path).names == tuple(NAMES)
    # Damage to the entry itself may hide the checksum, but no weights are there.
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole) - 80, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(StartError):
            load(path)


@pytest.mark.parametrize("length", [0, 65, 67, 127, 128, 256, 100_000])
def test_a_checksum_of_another_length_is_that_of_a_damaged_file(model_path, tmp_path, length):
    path = tmp_path / "model.onnx"
    file = onnx.load(model_path)
    onnx.helper.set_model_props(file, {p.key: p.value for p in file.metadata_props} | {"checksum": "0" * length})
    onnx.save(file, path)
    with pytest.raises(StartError, match="it is damaged, or was edited: it differs from the checksum at its end"):
        load(path)


def test_inverted_weights_are_named_as_damage(model_path, tmp_path):
    path = tmp_path / "model.onnx"
    whole = seal(model_path.read_bytes())
    weight = np.float32(10 / 255).tobytes()
    assert weight in whole
    path.write_bytes(whole.replace(weight, np.float32(11 / 255).tobytes()))
    with pytest.raises(
        StartError, match=r"it is damaged, or was edited: it differs from the checksum at its end\. Copy"
    ):
        load(path)
    path.write_bytes(whole + b"\x08\x08")
    with pytest.raises(StartError, match="it is damaged, or was edited"):
        load(path)


def beside(path: Path, *, example: bytes | None = None, sha256: str | None = None) -> None:
    """Writes the files beside a model: its description, and the example with what it computes, or other bytes."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    integrity.description_of(path).write_text(json.dumps({"file": path.name, "sha256": sha256 or digest}))
    integrity.example_of(path).parent.mkdir(exist_ok=True)
    if example is not None:
        integrity.example_of(path).write_bytes(example)
        return
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    outputs = load(path).run(images, ["logits", "probabilities"]) if sha256 is None else {}
    np.savez_compressed(integrity.example_of(path), image=images, **outputs)


def test_a_model_that_computes_something_else_than_its_example_is_refused(model_builder, tmp_path):
    path = model_builder(tmp_path / "model.onnx")
    beside(path)
    assert load(path).names == tuple(NAMES)
    weight = np.float32(10 / 255).tobytes()
    path.write_bytes(path.read_bytes().replace(weight, np.float32(11 / 255).tobytes()))
    # Its description is made from the damaged file, so that only the example shows the damage.
    description = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    integrity.description_of(path).write_text(json.dumps(description))
    with pytest.raises(
        StartError, match=r"its (logits|probabilities) for the pictures in .*example\.npz are not those"
    ):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_damaged_example_is_refused_in_one_line(model_builder, tmp_path, content):
    path = model_builder(tmp_path / "model.onnx")
    beside(path, example=content)
    with pytest.raises(StartError, match=r"its example .* cannot be used \(.*\)\. Copy or remove it\.") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_example_of_another_file_is_not_looked_at(model_builder, tmp_path):
    path = model_builder(tmp_path / "model.onnx")
    integrity.example_of(path).parent.mkdir()
    integrity.example_of(path).write_bytes(b"of another model")
    assert load(path).names == tuple(NAMES)


@pytest.mark.parametrize("name", ["tiny_imagenet", "tiny_imagenet.int8"])
def test_the_shipped_models_compute_their_examples(name):
    path = Path(integrity.__file__).parent / "models" / f"{name}.onnx"
    assert load(path).digest == integrity.read_description(path)["sha256"]
    assert integrity.read_example(path, 2)["image"].shape == (2, 64, 64, 3)
