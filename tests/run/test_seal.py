"""The checksums of a checkpoint: any flipped bit, any missing file, and a damaged record are found."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.checksum import ChecksumError
from jaxcnn.run.seal import NAME, STAMPS, check_arrays, check_files, checksum_arrays, write_seal

ITEMS = {
    "model": {"params": {"bias": jnp.arange(3.0), "kernel": jnp.ones((2, 3), jnp.bfloat16)}},
    "training": {"step": jnp.int32(7), "opt_state": ({"trace": jnp.zeros((0, 2))},)},
}


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("model/_METADATA", "model/d/0a", "training/d/0b", "metrics/metrics", *STAMPS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(random.bytes(random.integers(1, 3000)))
    write_seal(tmp_path, checksum_arrays(ITEMS))
    return tmp_path


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model/_METADATA", "model/d/0a", "training/d/0b", "metrics/metrics", NAME])
def test_any_flipped_bit_is_found(folder, name):
    items = ("model", "training", "metrics")
    check_files(folder, items)
    random = np.random.default_rng(1)
    for _ in range(50):
        whole, bit = (folder / name).read_bytes(), int(random.integers(2**20))
        flip(folder / name, bit)
        with pytest.raises(ChecksumError, match=rf"^{name} (differs from its checksum|is damaged)$"):
            check_files(folder, items)
        (folder / name).write_bytes(whole)
    check_files(folder, items)


def test_a_missing_file_is_found_and_other_items_do_not_matter(folder):
    (folder / "training" / "d" / "0b").unlink()
    check_files(folder, ("model", "metrics"))
    with pytest.raises(ChecksumError, match=r"^training/d/0b is missing$"):
        check_files(folder, ("model", "training"))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"bias": jnp.array([0.0, 1.0, 2.0000002])}, "bias"),
        ({"kernel": jnp.ones((3, 2), jnp.bfloat16)}, "kernel"),
        ({"kernel": jnp.ones((2, 3))}, "kernel"),
        ({"scale": jnp.ones(3)}, "scale"),
    ],
)
def test_an_array_of_another_value_shape_or_type_is_found(folder, change, name):
    check_arrays(folder, ITEMS)
    with pytest.raises(ChecksumError, match=rf"^the array model/params/{name} differs from its checksum$"):
        check_arrays(folder, {"model": {"params": ITEMS["model"]["params"] | change}})


def test_a_checkpoint_without_checksums_is_accepted(folder):
    (folder / NAME).unlink()
    flip(folder / "model" / "d" / "0a", 0)
    check_files(folder, ("model",))
    check_arrays(folder, {"model": {}})
