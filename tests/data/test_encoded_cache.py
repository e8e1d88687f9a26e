import itertools
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, make_picture, write_class_folders, zip_folder

import jaxcnn.data.loading
from jaxcnn.checksum import unseal
from jaxcnn.config import DataConfig
from jaxcnn.data import encoded_cache, epoch_order, load, shards, train_batches
from jaxcnn.data.crops import Crop, draw_crops
from jaxcnn.data.decoding import decode_crop
from jaxcnn.data.encoded_cache import load_encoded
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.encoded_images import EncodedImages
from jaxcnn.data.pictures import Picture
from jaxcnn.data.resize import Resize
from jaxcnn.data.source import Source
from jaxcnn.errors import UserError

if shards.has_array_record():
    from array_record.python import array_record_module

pytestmark = pytest.mark.skipif(not shards.has_array_record(), reason="array-record is not for Windows")


@pytest.fixture
def pets(tmp_path):
    """A folder of 2 x 9 pictures that are not square."""
    folder = write_class_folders(tmp_path / "pets", count=8, size=24)
    for label, name in enumerate(("cat", "dog")):
        make_picture(label, seed=50, size=40).resize((60, 40)).save(folder / name / "wide.jpg", quality=95)
    return folder


def settings(tmp_path, source, **more) -> DataConfig:
    given = {"source": str(source), "cache_dir": str(tmp_path / "cache"), "image_size": 16, "store": "encoded"}
    return DataConfig(**given | more)


def both(config: DataConfig):
    return [load(DataConfig(**vars(config) | {"store": store})) for store in ("decoded", "encoded")]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_both_stores_give_the_same_pictures(tmp_path, pets, fit, zipped):
    source = zip_folder(pets, tmp_path / "pets.zip") if zipped else pets
    decoded, encoded = both(settings(tmp_path, source, fit=fit))
    assert (encoded.store.kind, decoded.store.kind) == ("encoded", "decoded")
    for split in ("train", "validation"):
        one, other = getattr(decoded, split), getattr(encoded, split)
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.facts, other.facts)
        assert np.array_equal(one.images[:], other.images[:])
        assert np.array_equal(one.shown[:], other.shown[:])
        assert np.array_equal(one.shown[1], other.shown[1])
        assert one.shown.shape == other.shown.shape
    assert encoded.fingerprint() == decoded.fingerprint()
    pairs = zip(*(train_batches(one.train, seed=1, batch_size=4) for one in (decoded, encoded)), strict=True)
    for one, other in itertools.islice(pairs, 6):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)


def test_one_entry_serves_all_sizes_and_fits(tmp_path, pets, monkeypatch):
    load(settings(tmp_path, pets))
    monkeypatch.setattr(encoded_cache, "ShardWriter", None)
    for more in ({"image_size": 8}, {"fit": "crop", "image_size": 20}, {"validation_fraction": 0.5}):
        dataset = load(settings(tmp_path, pets, **more))
        assert dataset.train.shown.shape[1] == more.get("image_size", 16)
    entries = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert [name.endswith("-encoded") for name in entries] == [True]
    assert dataset.store.bytes == sum(
        path.stat().st_size for path in (tmp_path / "cache" / entries[0]).iterdir() if path.name != "entry.json"
    )


PICTURES = [
    Picture(where=f"picture {index}", encoded=encode(make_picture(index % 3, seed=index)), label=index % 3)
    for index in range(11)
]


def source(pictures=PICTURES[:8], validation=PICTURES[8:], **more) -> tuple[Source, list[None]]:
    """A source, and a list that grows each time it is opened."""
    opened = []

    def open_source():
        opened.append(None)
        return EncodedDataset(
            name="set", names=("a", "b", "c"), license="free", train=pictures, validation=validation, **more
        )

    return Source(key="some", open=open_source), opened


def test_pictures_span_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2 * len(PICTURES[0].encoded))
    monkeypatch.setattr(encoded_cache, "CHUNK", 3)
    dataset = load_encoded(source()[0], size=16, cache_dir=tmp_path)
    assert len(list((tmp_path / "some-encoded").glob("train-*.array_record"))) >= 3
    assert [dataset.train.images.pictures[place].encoded for place in range(8)] == [
        picture.encoded for picture in PICTURES[:8]
    ]
    assert dataset.train.file(5) == "picture 5"


def test_files_are_opened_when_they_are_first_read_unless_they_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1)
    some, opened = source()
    load_encoded(some, size=16, cache_dir=tmp_path)
    reader, read = array_record_module.ArrayRecordReader, []
    monkeypatch.setattr(
        array_record_module, "ArrayRecordReader", lambda path, **more: read.append(path) or reader(path, **more)
    )
    dataset = load_encoded(some, size=16, cache_dir=tmp_path)
    assert read == []
    assert dataset.train.images.pictures[2].encoded == PICTURES[2].encoded
    paths = [str(tmp_path / "some-encoded" / f"train-{number:05}.array_record") for number in range(8)]
    assert read == paths[2:3]
    # One that has changed since is opened and counted, and so are all of an entry of an earlier version.
    os.utime(paths[5])
    load_encoded(some, size=16, cache_dir=tmp_path)
    assert read == [paths[2], paths[5]]
    description = tmp_path / "some-encoded" / "entry.json"
    record = unseal(json.loads(description.read_text()))
    del record["records"]
    description.write_text(json.dumps(record))
    assert len(load_encoded(some, size=16, cache_dir=tmp_path).train.images[:]) == 8
    assert {*paths} < {*read}
    assert len(opened) == 1


MANY_FILES = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_encoded_cache import PICTURES, load_encoded, shards, source
shards.SHARD = 1
images = load_encoded(source(PICTURES * 10)[0], size=16, cache_dir=Path({folder!r})).train.images
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
images = load_encoded(source(PICTURES * 10)[0], size=16, cache_dir=Path({folder!r})).train.images
print(images[:].shape)
"""


def test_more_files_than_a_process_may_open_at_first(tmp_path):
    code = MANY_FILES.format(path=[str(Path(__file__).parent), *sys.path], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "(110, 16, 16, 3)\n", done.stderr


def test_a_second_start_does_not_list_the_pictures(tmp_path, pets, monkeypatch):
    config = settings(tmp_path, zip_folder(pets, tmp_path / "pets.zip"), store="auto")
    monkeypatch.setattr(jaxcnn.data.loading, "MOST_DECODED", 0)
    load(config)
    monkeypatch.setattr("jaxcnn.data.sources.folder.Archive", None)
    assert load(config).store.kind == "encoded"


def test_pictures_in_records_are_not_copied(tmp_path):
    some, opened = source(in_records=True)
    for count in (2, 3):  # Written once, and opened whenever it is read
        dataset = load_encoded(some, size=16, cache_dir=tmp_path)
        assert len(opened) == count
    assert not list((tmp_path / "some-encoded").glob("*.array_record"))
    assert dataset.train.images.pictures[3] is PICTURES[3]
    assert dataset.train.labels.tolist() == [picture.label for picture in PICTURES[:8]]
    # Prepared anew with more pictures, they are read anew.
    more = source(PICTURES[:9], in_records=True)[0]
    assert len(load_encoded(more, size=16, cache_dir=tmp_path).train.images[:]) == 9
    # The same number in another order has other labels.
    other = source(PICTURES[8::-1], in_records=True)[0]
    labels = load_encoded(other, size=16, cache_dir=tmp_path).train.labels.tolist()
    assert labels == [picture.label for picture in PICTURES[8::-1]]


class Counted(list):
    """Pictures that count how often each is read."""

    def __init__(self, pictures):
        super().__init__(pictures)
        self.reads = [0] * len(pictures)

    def __getitem__(self, index):
        self.reads[index] += 1
        return super().__getitem__(index)


def test_near_duplicates_are_compared_by_their_copies(tmp_path):
    """Some sources, such as Parquet files, are only read fast in their order."""
    files = [encode(make_picture(0, seed=0, size=40), "JPEG", quality=quality) for quality in range(60, 100, 5)]
    pictures = Counted([Picture(where="x", encoded=file, label=0) for file in files])
    dataset = load_encoded(source(pictures, [])[0], size=16, cache_dir=tmp_path)
    assert dataset.train.facts["alike"].tolist() == [0] * 8
    assert pictures.reads == [2] * 8  # To estimate the size of all, and to copy them


def test_a_source_without_validation_pictures_gives_an_empty_split(tmp_path):
    dataset = load_encoded(source(validation=[])[0], size=16, cache_dir=tmp_path)
    assert dataset.validation.images[:].shape == (0, 16, 16, 3)


def test_one_error_lists_all_unreadable_pictures_and_leaves_nothing(tmp_path):
    broken = [Picture(where=f"cat/{index}.png", encoded=b"?", label=0) for index in range(3)]
    with pytest.raises(UserError, match=r"^3 pictures cannot be read: cat/0\.png .* \| cat/1\.png .* \| cat/2\.png"):
        load_encoded(source([*PICTURES[:4], *broken])[0], size=16, cache_dir=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def record_file(folder: Path) -> Path:
    (path,) = folder.glob("*-encoded/train-*.array_record")
    return path


def test_a_picture_that_breaks_during_training_names_its_file(tmp_path, pets):
    dataset = load(settings(tmp_path, pets))
    path = record_file(tmp_path / "cache")
    content, encoded = path.read_bytes(), (pets / "dog" / "wide.jpg").read_bytes()
    place = content.index(encoded[-300:-200])
    path.write_bytes(content[:place] + bytes(100) + content[place + 100 :])
    with pytest.raises(UserError, match=r"^dog/wide\.jpg cannot be read from .*-encoded \(.*\); check the disk, "):
        for _ in itertools.islice(train_batches(dataset.train, seed=0, batch_size=4), 8):
            pass


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-00000.array_record", cut),
        ("train-00000.array_record", garble),
        ("train_labels.npy", garble),
        ("validation_facts.npy", garble),
        ("entry.json", Path.unlink),
    ],
)
def test_a_damaged_entry_is_written_again(tmp_path, name, damage):
    some, opened = source()
    for _ in range(2):
        load_encoded(some, size=16, cache_dir=tmp_path)
    assert len(opened) == 1
    damage(tmp_path / "some-encoded" / name)
    dataset = load_encoded(some, size=16, cache_dir=tmp_path)
    assert len(opened) == 2
    assert len(dataset.train.images[:]) == 8


FULL_DISK = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_encoded_cache import PICTURES, UserError, load_encoded, source
many = PICTURES * 40
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # larger writes fail as on a full disk
try:
    load_encoded(source(many)[0], size=16, cache_dir=Path({folder!r}))
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_says_so_and_leaves_no_files(tmp_path):
    code = FULL_DISK.format(path=[str(Path(__file__).parent), *sys.path], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == (
        f"the disk is full: there is no room for a copy of the encoded pictures in {tmp_path}; "
        "make room or choose another --data.cache_dir\n"
    ), done.stderr
    assert {file.name for file in tmp_path.iterdir()} <= {"some.lock"}


def test_auto_decodes_what_is_small_and_says_why_not(tmp_path, pets, monkeypatch):
    config = settings(tmp_path, pets, store="auto")
    # 18 pictures of 16 x 16 pixels take 13,824 bytes.
    monkeypatch.setattr(jaxcnn.data.loading, "MOST_DECODED", 13_823)
    dataset = load(config)
    assert dataset.store.kind == "encoded"
    assert dataset.store.reason == "decoded they would take 0.0 GB, the limit is 1.3823e-05 GB"
    assert load(settings(tmp_path, pets)).store.reason == ""
    monkeypatch.setattr(jaxcnn.data.loading, "MOST_DECODED", 13_824)
    assert load(config).store.kind == "decoded"
    # What is decoded already takes no more room.
    monkeypatch.setattr(jaxcnn.data.loading, "MOST_DECODED", 0)
    assert load(config).store.kind == "decoded"


def test_auto_encodes_what_the_disk_has_no_room_for(tmp_path, pets, monkeypatch):
    usage = type("Usage", (), {"free": 200_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    config = settings(tmp_path, pets, store="auto", image_size=64)  # Decoded, they would take 221,184 bytes
    store = load(config).store
    assert (store.kind, store.reason) == ("encoded", "decoded they would take 0.0 GB, 0.0 GB are free")
    with pytest.raises(UserError, match="the disk is too full"):
        load(settings(tmp_path, pets, store="decoded", image_size=64))


def test_a_disk_without_room_for_copies_is_refused_before_they_are_written(tmp_path, monkeypatch):
    size = sum(len(picture.encoded) for picture in PICTURES)
    usage = type("Usage", (), {"free": 0.6 * size})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"copies of the encoded pictures take 0\.0 MB in .*; make room or choose"):
        load_encoded(source()[0], size=16, cache_dir=tmp_path)
    usage.free = size
    load_encoded(source()[0], size=16, cache_dir=tmp_path)


def test_what_a_killed_process_has_left_is_removed_before_the_disk_is_measured(tmp_path, monkeypatch):
    left = tmp_path / "some-encoded.partial" / "train-00000.array_record"
    left.parent.mkdir()
    left.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0 if left.exists() else 10**6}))
    assert len(load_encoded(source()[0], size=16, cache_dir=tmp_path).train) == 8


def test_without_array_record_encoded_is_refused_and_auto_decodes(tmp_path, pets, monkeypatch):
    for module in (encoded_cache, jaxcnn.data.loading):
        monkeypatch.setattr(module, "has_array_record", lambda: False)
    monkeypatch.setattr(jaxcnn.data.loading, "MOST_DECODED", 0)
    with pytest.raises(UserError, match=r"array-record, which is not for Windows; give --data\.store decoded"):
        load(settings(tmp_path, pets))
    assert load(settings(tmp_path, pets, store="auto")).store.kind == "decoded"


def test_images_are_indexed_like_an_array():
    images = EncodedImages(PICTURES, 8, Resize())
    whole = images[:]
    assert (images.shape, images.dtype) == (whole.shape, whole.dtype)
    for index in (3, np.int64(3), slice(2, 5), slice(5, 2, -1), slice(9, 99), np.array([4, 4, 0]), np.array([], int)):
        assert np.array_equal(images[index], whole[index])


def test_crops_are_taken_from_whole_pictures_in_training_alone(tmp_path, pets):
    config = settings(tmp_path, pets, fit="crop", crop=0.8)
    decoded, encoded = (one.cropped((0.2, 0.5)) for one in both(config))
    # Decoded pictures are cropped by the step, on the device.
    assert (decoded.train.crop_scale, encoded.train.crop_scale) == (None, (0.2, 0.5))
    assert next(train_batches(decoded.train, seed=0, batch_size=4)).images.shape == (4, 20, 20, 3)
    # What evaluation sees does not change.
    assert np.array_equal(decoded.train.shown[:], encoded.train.shown[:])
    order = epoch_order(seed=5, epoch=1, count=16)
    batch = next(train_batches(encoded.train, seed=5, batch_size=4, start_step=6))
    files, draws = [encoded.train.file(row) for row in order[8:12].tolist()], draw_crops(seed=5, step=6, count=4)
    resize = Resize(mode="crop", side=20)
    for image, file, drawn in zip(batch.images, files, draws, strict=True):
        content = (pets / file).read_bytes()
        expected = decode_crop(content, Crop((0.2, 0.5), drawn), size=16, resize=resize, where="x")
        assert np.array_equal(image, expected)


def test_processes_read_their_rows_of_the_same_crops(tmp_path, pets):
    train, options = load(settings(tmp_path, pets)).train.cropped((0.2, 0.9)), {"seed": 3, "batch_size": 8}
    whole = list(itertools.islice(train_batches(train, **options), 3))
    for rows in (np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7])):
        parts = itertools.islice(train_batches(train, **options, rows=rows), 3)
        for part, batch in zip(parts, whole, strict=True):
            assert np.array_equal(part.images, batch.images[rows])
            assert np.array_equal(part.labels, batch.labels[rows])


SEEN = """
import itertools, sys, time, zlib
from jaxcnn.config import DataConfig
from jaxcnn.data import load, train_batches
start, stop = map(int, sys.argv[3:])
config = DataConfig(source=sys.argv[1], cache_dir=sys.argv[2], image_size=16, store="encoded")
train = load(config).train.cropped((0.2, 1.0))
batches = train_batches(train, seed=7, batch_size=5, start_step=start)
for step, batch in enumerate(itertools.islice(batches, stop - start)):
    print(start + step, zlib.crc32(batch.images.tobytes()), batch.labels.tolist(), flush=True)
time.sleep(100 if start == 0 else 0)
"""


def test_a_run_killed_within_an_epoch_goes_on_with_the_pictures_that_it_would_have_seen(tmp_path, pets):
    cache = str(tmp_path / "cache")
    train = load(settings(tmp_path, pets)).train.cropped((0.2, 1.0))
    batches = itertools.islice(train_batches(train, seed=7, batch_size=5), 8)  # Of three to an epoch
    whole = [
        f"{step} {zlib.crc32(batch.images.tobytes())} {batch.labels.tolist()}" for step, batch in enumerate(batches)
    ]
    command = [sys.executable, "-c", SEEN, str(pets), cache]
    killed = subprocess.Popen([*command, "0", "5"], stdout=subprocess.PIPE, text=True)
    seen = [killed.stdout.readline().strip() for _ in range(5)]
    killed.kill()
    killed.communicate()
    resumed = subprocess.run([*command, "5", "8"], capture_output=True, text=True, check=True, timeout=100)
    assert seen + resumed.stdout.splitlines() == whole


def test_the_fingerprint_decodes_the_validation_pictures_once(tmp_path, pets, monkeypatch):
    decoded, encoded = both(settings(tmp_path, pets, validation_fraction=0.3))
    fingerprint = encoded.fingerprint()
    assert fingerprint == decoded.fingerprint()
    reads, decode_one = [], EncodedImages._decode
    monkeypatch.setattr(EncodedImages, "_decode", lambda *arguments: reads.append(None) or decode_one(*arguments))
    again = load(settings(tmp_path, pets, validation_fraction=0.3))
    assert (again.fingerprint(), reads) == (fingerprint, [])
    # Other pictures, or other pixels, are another matter.
    for other in ({"split_seed": 1}, {"image_size": 12}, {"fit": "pad"}, {"validation_fraction": 0.5}):
        one, same = both(settings(tmp_path, pets, **{"validation_fraction": 0.3} | other))
        reads.clear()
        assert same.fingerprint() == one.fingerprint()
        # The training pictures are so few that all of them are identified.
        assert len(reads) == len(same.validation) + len(same.train)
    # A damaged hash is computed again.
    for path in tmp_path.glob("cache/*-encoded/pixels-*.json"):
        path.write_text(path.read_text().replace("a", "b"))
    assert again.fingerprint() == fingerprint
