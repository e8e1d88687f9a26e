"""PyTorch checkpoints read without PyTorch: both formats, and files that would run a program or read beyond memory."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcnn.errors import UserError
from jaxcnn.models.pretrained.pth import LEGACY_MAGIC, STORAGES, read_pth

NAMES = {dtype: name for name, dtype in STORAGES.items()}


class Global:
    """Pickled as a reference to `module.name`, which need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a global with arguments."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Storage:
    """Pickled as PyTorch pickles a tensor's memory."""

    def __init__(self, array, key, *, length=None):
        self.array, self.key = array, key
        self.length = array.size if length is None else length


class TorchPickler(pickle._Pickler):
    """Writes what `torch.save` writes, protocol 2."""

    def __init__(self, file):
        super().__init__(file, protocol=2)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", Global("torch", NAMES[obj.array.dtype]), obj.key, "cpu", obj.length, *self.view)
        return None

    view = ()

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(b"R")
            if obj.state is not None:
                self.save(obj.state)
                self.write(b"b")
        else:
            super().save(obj, save_persistent_id)


class LegacyPickler(TorchPickler):
    view = (None,)


def dump(tree, pickler=TorchPickler):
    file = io.BytesIO()
    pickler(file).dump(tree)
    return file.getvalue()


def tensor(array, key, *, shape=None, strides=None, offset=0, length=None, state=None):
    shape = array.shape if shape is None else shape
    strides = tuple(step // array.itemsize for step in array.strides) if strides is None else strides
    return Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        Storage(array, key, length=length),
        offset,
        shape,
        strides,
        False,
        OrderedDict(),
        state=state,
    )


def write_zip(path, tree, blocks, *, compression=zipfile.ZIP_STORED, order="little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", dump(tree))
        archive.writestr("archive/byteorder", order)
        for key, array in blocks.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, tree, blocks, *, order="little"):
    parts = [pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, {"little_endian": order == "little"})]
    parts += [dump(tree, LegacyPickler), pickle.dumps(list(blocks), 2)]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in blocks.values()]
    path.write_bytes(b"".join(parts))
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])
dtypes = st.sampled_from([dtype for dtype in STORAGES.values() if dtype != ml_dtypes.bfloat16])
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes))
names = st.text(min_size=1).filter(lambda name: not name.startswith("module."))


@WRITERS
@given(found=st.dictionaries(names, arrays, min_size=1))
def test_tensors_come_back_as_written(tmp_path_factory, write, found):
    path = tmp_path_factory.mktemp("pth") / "x.pth"
    blocks = {str(i): array for i, array in enumerate(found.values())}
    tree = OrderedDict((name, tensor(array, str(i))) for i, (name, array) in enumerate(found.items()))
    read = read_pth(write(path, tree, blocks))
    assert read.keys() == found.keys()
    for name, array in found.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@WRITERS
def test_views_and_bfloat16(tmp_path, write):
    block = np.arange(12, dtype=np.float32)
    half = np.array([1.5, -2], ml_dtypes.bfloat16)
    tree = {
        "turned": tensor(block, "0", shape=(4, 3), strides=(1, 4)),
        "part": tensor(block, "0", shape=(2,), strides=(5,), offset=2),
        "half": tensor(half, "1"),
    }
    found = read_pth(write(tmp_path / "x.pth", tree, {"0": block, "1": half}))
    np.testing.assert_array_equal(found["turned"], block.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], [2, 7])
    np.testing.assert_array_equal(found["half"].astype(np.float32), [1.5, -2])


@WRITERS
@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapped_state_dict_from_several_devices(tmp_path, write, wrapper):
    array = np.ones(3, np.float32)
    tree = {"epoch": 3, "optimizer": {"lr": 0.1}, wrapper: {"module.weight": tensor(array, "0")}}
    assert list(read_pth(write(tmp_path / "x.pth", tree, {"0": array}))) == ["weight"]


@WRITERS
@pytest.mark.parametrize(
    "hostile",
    [
        Call(Global("os", "system"), "touch hacked"),
        Call(Global("builtins", "eval"), "open('hacked', 'w')"),
        Call(Global("torch._utils", "_rebuild_tensor_v3")),
        Global("builtins", "print"),
    ],
)
def test_a_program_is_refused_and_not_run(tmp_path, write, hostile, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"x\.pth is refused: it asks for .*, which could run a program"):
        read_pth(write(tmp_path / "x.pth", {"weight": hostile}, {}))
    assert os.listdir(tmp_path) == ["x.pth"]


@WRITERS
@pytest.mark.parametrize(
    "beyond",
    [
        {"shape": (5,), "strides": (1,)},
        {"shape": (2,), "strides": (4,)},
        {"shape": (1,), "strides": (1,), "offset": 4},
        {"shape": (2,), "strides": (-1,)},
        {"shape": (-1,), "strides": (1,)},
        {"shape": (2, 2), "strides": (1,)},
        {"shape": (10**9,), "strides": (0,)},
        {"shape": [4], "strides": (1,)},
        {"shape": (4.0,), "strides": (1,)},
    ],
)
def test_a_tensor_beyond_its_memory_is_refused(tmp_path, write, beyond):
    array = np.zeros(4, np.float32)
    with pytest.raises(UserError, match="refused: a tensor in it"):
        read_pth(write(tmp_path / "x.pth", {"weight": tensor(array, "0", **beyond)}, {"0": array}))


@WRITERS
def test_a_tensor_cannot_be_changed_after_its_checks(tmp_path, write):
    array = np.zeros(4, np.float32)
    tree = {"weight": tensor(array, "0", state={"shape": (4000,)})}
    with pytest.raises(UserError):
        read_pth(write(tmp_path / "x.pth", tree, {"0": array}))


@WRITERS
def test_a_block_of_another_length_is_refused(tmp_path, write):
    array = np.zeros(4, np.float32)
    with pytest.raises(UserError, match="block '0'"):
        read_pth(write(tmp_path / "x.pth", {"weight": tensor(array, "0", length=5)}, {"0": array}))


@WRITERS
def test_numbers_in_the_other_order_are_refused(tmp_path, write):
    array = np.zeros(4, np.float32)
    with pytest.raises(UserError, match=r"x\.pth is refused: its numbers are big-endian; give a state_dict"):
        read_pth(write(tmp_path / "x.pth", {"weight": tensor(array, "0")}, {"0": array}, order="big"))


def test_a_compressed_file_is_refused(tmp_path):
    array = np.zeros(4, np.float32)
    path = write_zip(tmp_path / "x.pth", {"weight": tensor(array, "0")}, {"0": array}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it is compressed"):
        read_pth(path)


@pytest.mark.parametrize("numbered", [b"r\xff\xff\xff\x7f", b"p2147483647\n"], ids=["binary", "text"])
def test_a_number_that_would_take_all_memory_is_refused(tmp_path, numbered):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + numbered + b".")
    with pytest.raises(UserError, match="is refused: it gives an object a number that is too large; give a state_dict"):
        read_pth(path)


@WRITERS
@given(cut=st.floats(0, 1), byte=st.integers(0, 255))
def test_damage_is_an_error_in_words_or_harmless(tmp_path_factory, write, cut, byte):
    path = tmp_path_factory.mktemp("pth") / "x.pth"
    array = np.arange(8, dtype=np.float32)
    data = write(path, OrderedDict(weight=tensor(array, "0")), {"0": array}).read_bytes()
    place = int(cut * (len(data) - 1))
    for damaged in (data[:place], data[:place] + bytes([byte]) + data[place + 1 :]):
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_pth(path)


@pytest.mark.parametrize("tree", [[1, 2], {}, {"lr": 0.1}, "text"])
@WRITERS
def test_a_file_without_tensors_is_refused(tmp_path, write, tree):
    with pytest.raises(UserError, match=r"x\.pth is refused: it holds"):
        read_pth(write(tmp_path / "x.pth", tree, {}))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.pth cannot be read: No such file"):
        read_pth(tmp_path / "x.pth")
