import io
import os
import resource
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pictures import encode, make_picture
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from jaxcnn.data.sources.tensorflow_shim import OPEN_FILES, installed_shim


def shapes(*channels: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from(channels))


@given(shapes(1, 3, 4).flatmap(lambda shape: arrays(np.uint8, shape)))
def test_png_keeps_every_value(pixels):
    with installed_shim():
        encoded = tf.image.encode_png(pixels).numpy()
        decoded = tf.image.decode_image(encoded)
    assert type(encoded) is bytes
    assert type(decoded.numpy()) is np.ndarray
    assert np.array_equal(decoded, pixels)


@given(shapes(1).flatmap(lambda shape: arrays(np.uint16, shape)))
def test_png_keeps_16_bits(pixels):
    with installed_shim():
        encoded = tf.image.encode_png(pixels)
    with Image.open(io.BytesIO(encoded)) as image:
        assert np.array_equal(image, pixels[..., 0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_keeps_the_picture(mode):
    pixels = np.atleast_3d(make_picture(1, seed=0, size=32).convert(mode).resize((64, 64)))
    with installed_shim():
        decoded, rougher = (
            tf.image.decode_jpeg(encoded)
            for encoded in (tf.io.encode_jpeg(pixels), tf.image.encode_jpeg(pixels, format="", quality=20))
        )
    assert decoded.shape == pixels.shape
    fine, rough = (float(np.abs(image.astype(int) - pixels).mean()) for image in (decoded, rougher))
    assert 2 * fine < rough


@pytest.mark.parametrize(
    ("mode", "asked", "channels"),
    [("L", 0, 1), ("RGB", 0, 3), ("RGBA", 0, 4), ("P", 0, 3), ("1", 0, 3), ("RGBA", 3, 3), ("L", 3, 3), ("RGB", 1, 1)],
)
def test_decoding_gives_the_channels_asked_for(mode, asked, channels):
    contents = encode(make_picture(0, seed=0).convert(mode))
    with installed_shim():
        decoded = tf.image.decode_image(contents, channels=asked)
        assert tf.shape(decoded) == (16, 16, channels)


def test_files_and_folders(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    with installed_shim():
        for name in ("z.txt", "a.txt"):
            with tf.io.gfile.GFile(tmp_path / "b" / name, "w") as file:
                file.write("é\r\n")
        with tf.io.gfile.GFile(os.fspath(tmp_path / "b" / "z.txt")) as file:
            assert file.read() == "é\r\n"
        with tf.io.gfile.GFile(tmp_path / "b" / "z.txt", "rb") as file:
            assert file.read() == "é\r\n".encode()
        assert tf.io.gfile.listdir(tmp_path / "b") == ["a.txt", "deep", "z.txt"]
        assert tf.io.gfile.glob(f"{tmp_path}/*/*.txt") == [f"{tmp_path}/b/a.txt", f"{tmp_path}/b/z.txt"]
        assert [*tf.io.gfile.walk(str(tmp_path))] == [
            (str(tmp_path), ["b"], []),
            (f"{tmp_path}/b", ["deep"], ["a.txt", "z.txt"]),
            (f"{tmp_path}/b/deep", [], []),
        ]
        assert tf.io.gfile.isdir(tmp_path / "b")
        tf.io.gfile.remove(tmp_path / "b" / "z.txt")
        assert not tf.io.gfile.exists(tmp_path / "b" / "z.txt")


def test_text_and_bytes():
    with installed_shim():
        assert tf.compat.as_text("é".encode()) == tf.compat.as_text("é") == "é"
        assert tf.compat.as_bytes("é") == tf.compat.as_bytes("é".encode()) == "é".encode()


@pytest.mark.parametrize("use", [lambda: tf.data, lambda: tf.io.parse_single_example, lambda: tf.image.resize])
def test_a_missing_name_is_an_import_error_that_names_tensorflow(use):
    with installed_shim(), pytest.raises(ImportError, match="the shim for tensorflow has no ") as caught:
        use()
    assert caught.value.name == "tensorflow"


def limit() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture
def few_open_files():
    """Limits the process to 100 open files more than it has."""
    before = limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_everything_is_restored_even_after_an_error(few_open_files):
    before = limit()

    def fail():
        assert tf.executing_eagerly()
        assert limit()[0] == min(OPEN_FILES, before[1])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), installed_shim():
        fail()
    assert limit() == before
    with pytest.raises(ImportError, match="No module named 'tensorflow'"):
        tf.executing_eagerly()


def test_threads_take_turns():
    inside, finished = [], []

    def use(number):
        with installed_shim():
            inside.append(number)
            assert len(inside) == 1
            for _ in range(1000):
                tf.executing_eagerly()
            inside.remove(number)
        finished.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == [0, 1, 2, 3]


def test_tensorflow_is_used_where_it_is_installed(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with installed_shim():
        assert "_module" not in vars(tf)
