import json
import sys
from pathlib import Path

import pytest
from pictures import encode, make_picture

from jaxcnn.config import DataConfig
from jaxcnn.data import load
from jaxcnn.data.loading import find_source
from jaxcnn.data.sources import parquet as source
from jaxcnn.errors import UserError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "cow", "dog"]
IMAGE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def picture(index: int) -> bytes:
    return encode(make_picture(index % 3, seed=index))


def describe(image: str = "image", label: str = "label", names: list[str] | None = None) -> dict:
    """What `datasets` writes about the columns."""
    features = {image: {"_type": "Image"}, label: {"names": NAMES if names is None else names, "_type": "ClassLabel"}}
    return {"info": {"features": features, "license": "CC-BY-4.0"}}


def write_rows(
    path: Path, rows: list[tuple], *, info: dict | None = None, columns=("image", "label"), kinds=None
) -> Path:
    """Writes rows of pictures and labels, two in each row group; a picture is bytes, or bytes and a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = ([row[place] for row in rows] for place in range(2))
    images = [{"bytes": image, "path": "x.png"} if not isinstance(image, dict | None) else image for image in images]
    kinds = kinds or (IMAGE, arrow.int64())
    schema = arrow.schema(list(zip(columns, kinds, strict=True)))
    schema = schema.with_metadata({} if info is None else {"huggingface": json.dumps(info)})
    table = arrow.Table.from_arrays(
        [arrow.array(values, kind) for values, kind in zip((images, labels), kinds, strict=True)], schema=schema
    )
    parquet.write_table(table, path, row_group_size=2)
    return path


def rows(*indices: int) -> list[tuple]:
    """Examples whose class is their number modulo 3."""
    return [(picture(index), index % 3) for index in indices]


def shards(folder: Path) -> Path:
    write_rows(folder / "train-00000-of-00002.parquet", rows(0, 1, 2, 3, 4), info=describe())
    write_rows(folder / "train-00001-of-00002.parquet", rows(5, 6), info=describe())
    write_rows(folder / "validation-00000-of-00001.parquet", rows(7, 8), info=describe())
    write_rows(folder / "test-00000-of-00001.parquet", [(picture(9), -1)], info=describe())
    return folder


def opened(path: Path):
    return find_source(DataConfig(source=str(path))).open()


@pytest.mark.parametrize("inside", [".", "data"])
def test_shards_are_split_by_their_names(tmp_path, inside):
    shards(tmp_path / "pets" / inside)
    (tmp_path / "pets" / "README.md").touch()
    (tmp_path / "pets" / ".git").mkdir()
    # As macOS leaves beside every file on other file systems.
    (tmp_path / "pets" / inside / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7")
    dataset = opened(tmp_path / "pets")
    assert (dataset.name, dataset.names, dataset.license) == ("pets", ("cat", "cow", "dog"), "CC-BY-4.0")
    assert [dataset.train[index].encoded for index in range(7)] == [picture(index) for index in range(7)]
    assert [dataset.train[index].label for index in range(len(dataset.train))] == [0, 1, 2, 0, 1, 2, 0]
    assert [dataset.validation[index].label for index in range(len(dataset.validation))] == [1, 2]
    last = dataset.train[6]
    assert last.file == "train-00001-of-00002.parquet/1"
    assert last.where == f"row 1 of {(tmp_path / 'pets' / inside).resolve()}/train-00001-of-00002.parquet"


@pytest.mark.parametrize("store", ["decoded", "encoded"])
def test_both_stores_take_them(tmp_path, store):
    config = DataConfig(source=str(shards(tmp_path / "pets")), cache_dir=str(tmp_path / "cache"), store=store)
    dataset = load(config)
    assert (len(dataset.train), len(dataset.validation), dataset.store.kind) == (7, 2, store)
    assert dataset.train.images[:].shape == (7, 32, 32, 3)
    assert dataset.validation.file(1) == "validation-00000-of-00001.parquet/1"


def test_few_row_groups_are_in_memory(tmp_path, monkeypatch):
    read = parquet.ParquetFile.read_row_group
    calls = []
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda *a, **options: calls.append(a[1]) or read(*a, **options)
    )
    pictures = opened(write_rows(tmp_path / "a.parquet", rows(*range(8)), info=describe())).train
    calls.clear()
    for index in (0, 1, 2, 1, 3, 4, 2, 5, 7, 0):
        assert pictures[index].encoded == picture(index)
    assert calls == [0, 1, 2, 3, 0]


def test_a_file_is_not_opened_again_for_each_row_group(tmp_path, monkeypatch):
    """Opening it takes as long as it has row groups."""
    open_file, calls = source._open_file, []
    monkeypatch.setattr(source, "_open_file", lambda file: calls.append(file) or open_file(file))
    path = write_rows(tmp_path / "a.parquet", rows(*range(8)), info=describe())
    pictures = opened(path).train
    assert [pictures[index].encoded for index in range(8)] == [picture(index) for index in range(8)]
    assert calls == [path] * 3  # For its columns, its labels and its pictures


def test_a_link_to_nothing_is_refused(tmp_path):
    (shards(tmp_path / "pets") / "train-00002-of-00003.parquet").symlink_to("nowhere")
    with pytest.raises(
        UserError, match=r"train-00002-of-00003\.parquet cannot be read: No such file .*; repair or rem"
    ):
        opened(tmp_path / "pets")


def test_other_names_of_columns_and_numbers_in_place_of_class_names(tmp_path):
    path = write_rows(tmp_path / "a.parquet", rows(0, 5), info=describe("img", "kind"), columns=("img", "kind"))
    assert [opened(path).train[index].label for index in range(2)] == [0, 2]
    dataset = opened(write_rows(tmp_path / "b.parquet", rows(0, 5)))
    assert (dataset.name, dataset.names, dataset.license) == ("b", ("0", "1", "2"), "unknown")


@pytest.mark.parametrize("inside", [".", "data"])
def test_class_folders_go_first(tmp_path, inside):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / inside / name).mkdir(parents=True)
        (tmp_path / "pets" / inside / name / "1.png").write_bytes(picture(0))
    write_rows(tmp_path / "pets" / inside / "backup.parquet", rows(0))
    assert opened(tmp_path / "pets").names == ("cat", "dog")


def test_a_changed_file_has_another_key(tmp_path):
    config = DataConfig(source=str(shards(tmp_path / "pets")))
    before = find_source(config).key
    write_rows(tmp_path / "pets" / "train-00001-of-00002.parquet", rows(5, 8, 9), info=describe())
    assert find_source(config).key != before


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            rows(0, 1, 2),
            {"info": describe(names=["a", "b"])},
            r"row 2 of .*a\.parquet is of class 2, of at most 2 classes",
        ),
        ([(picture(0), -2)], {}, r"row 0 of .*a\.parquet is of class -2"),
        (
            [(picture(0), 1764460800)],
            {},
            r"row 0 of .* is of class 1764460800, of at most 1,000,000 classes; correct it",
        ),
        (rows(0), {"info": describe(names=["a", "a"])}, r"a\.parquet has the class 'a' more than once"),
        (rows(0), {"columns": ("photo", "label")}, r"a\.parquet has no column 'image', but photo, label; rename"),
        (rows(0), {"columns": ("image", "kind")}, r"a\.parquet has no column 'label', but image, kind; rename"),
        ([(picture(0), "cat")], {"kinds": (IMAGE, arrow.string())}, r"column label of .* is string, not the index"),
        ([(None, 0)], {"kinds": (arrow.binary(), arrow.int64())}, r"column image of .* is binary, not a struct"),
        ([], {}, r"a\.parquet has no rows for training"),
    ],
)
def test_what_is_not_the_layout_is_refused(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        opened(write_rows(tmp_path / "a.parquet", content, **options))


def test_rows_without_a_picture_are_named(tmp_path):
    content = [({"bytes": None, "path": "cats/1.jpg"}, 0), (None, 1), (picture(2), None)]
    pictures = opened(write_rows(tmp_path / "a.parquet", content, info=describe())).train
    with pytest.raises(UserError, match=r"^row 0 of .*a\.parquet has no picture, only the path cats/1\.jpg; write"):
        pictures[0]
    with pytest.raises(UserError, match=r"^row 1 of .*a\.parquet has no picture; write the file again with the pict"):
        pictures[1]
    assert pictures[2].label == -1


def test_broken_pictures_are_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [*rows(0, 1), (b"noise", 1)], info=describe())
    with pytest.raises(UserError, match=r"row 2 of .*a\.parquet"):
        load(DataConfig(source=str(path), cache_dir=str(tmp_path / "cache")))


def test_damaged_and_different_files_are_refused(tmp_path):
    whole = write_rows(tmp_path / "pets" / "a.parquet", rows(0, 1), info=describe())
    other = write_rows(tmp_path / "pets" / "b.parquet", rows(0, 1), info=describe(names=["a", "b", "c"]))
    with pytest.raises(UserError, match=r"b\.parquet has other columns or classes than a\.parquet; write both"):
        opened(tmp_path / "pets")
    other.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"b\.parquet is not a complete Parquet file \(.*\); make or download it again"):
        opened(tmp_path / "pets")
    dataset = opened(whole)
    whole.unlink()
    with pytest.raises(UserError, match=r"a\.parquet is not a complete Parquet file \(.*No such file"):
        dataset.train[0]


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", rows(0))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"^Parquet files need pyarrow; run pip install pyarrow$"):
        opened(path)
