import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, make_picture

from jaxcnn.checksum import checksum_chunks
from jaxcnn.data import cache
from jaxcnn.data.cache import load_cached
from jaxcnn.data.decoding import DECODER, decode
from jaxcnn.data.encoded_dataset import EncodedDataset
from jaxcnn.data.entry import locked, print_passed_over
from jaxcnn.data.pictures import Picture
from jaxcnn.data.resize import STRETCH, Resize
from jaxcnn.data.source import Source
from jaxcnn.errors import UserError
from jaxcnn.terminal import warn

PICTURES = [
    Picture(where=f"picture {index}", encoded=encode(make_picture(index % 3, seed=index, size=10)), label=index % 3)
    for index in range(11)
]


def source(*, train=PICTURES[:8], validation=PICTURES[8:], key="some", name="set") -> tuple[Source, list[str]]:
    """A source, and a list that grows each time it is opened."""
    calls = []

    def opened():
        calls.append(key)
        return EncodedDataset(
            name=name,
            names=("a", "b", "c"),
            wnids=("n1", "n2", "n3"),
            license="free",
            train=train,
            validation=validation,
        )

    return Source(key=key, open=opened), calls


def check(dataset, *, size=8):
    for split, pictures in ((dataset.train, PICTURES[:8]), (dataset.validation, PICTURES[8:])):
        expected = np.stack([decode(picture.encoded, size=size, where="x") for picture in pictures])
        assert np.array_equal(split.images, expected)
        assert split.labels.tolist() == [picture.label for picture in pictures]
        assert split.labels.dtype == np.int32


def test_the_second_call_maps_what_the_first_decoded(tmp_path):
    some, calls = source()
    for _ in range(2):
        dataset = load_cached(some, size=8, cache_dir=tmp_path / "new" / "cache")
        check(dataset)
        assert isinstance(dataset.train.images, np.memmap)
        assert not dataset.train.images.flags.writeable
        assert (dataset.name, dataset.names, dataset.license) == ("set", ("a", "b", "c"), "free")
        assert dataset.wnids == ("n1", "n2", "n3")
    assert calls == ["some"]


def test_an_entry_is_renamed_after_it_has_reached_the_disk(tmp_path, monkeypatch):
    entry, sync = tmp_path / "some-8", os.fsync
    named, unnamed = set(), set()  # inodes synchronised after and before the entry got its name

    def recorded(descriptor):
        sync(descriptor)
        (named if entry.exists() else unnamed).add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", recorded)
    load_cached(source()[0], size=8, cache_dir=tmp_path)
    assert unnamed == {path.stat().st_ino for path in (entry, *entry.iterdir())}
    assert named == {tmp_path.stat().st_ino}


def test_each_size_and_key_has_an_entry(tmp_path):
    for key, size in (("some", 8), ("some", 9), ("other", 8)):
        some, calls = source(key=key)
        check(load_cached(some, size=size, cache_dir=tmp_path), size=size)
        assert calls == [key]


def test_chunks_join_without_a_gap(tmp_path, monkeypatch):
    for chunk in (1, 3, 8):
        monkeypatch.setattr(cache, "CHUNK", chunk * 8 * 8 * 3)
        check(load_cached(source()[0], size=8, cache_dir=tmp_path / str(chunk)))


@pytest.fixture
def pools(monkeypatch):
    """Records for each pool its number of threads, and how many pictures are decoded between two writes."""
    made = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads):
            super().__init__(threads)
            made.append((threads, []))

        def map(self, function, rows):
            made[-1][1].append(len(rows))
            return super().map(function, rows)

    monkeypatch.setattr(cache, "ThreadPoolExecutor", Pool)
    return made


@pytest.mark.parametrize(("size", "rows"), [(8, [8, 3]), (10, [7, 1, 3]), (80, [1] * 11)])
def test_a_chunk_has_fewer_pictures_if_they_are_larger(tmp_path, monkeypatch, pools, size, rows):
    monkeypatch.setattr(cache, "CHUNK", 2100)
    check(load_cached(source()[0], size=size, cache_dir=tmp_path), size=size)
    assert [count for _, count in pools] == [rows]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 3), (64, 16)])
def test_one_thread_per_usable_core_decodes(tmp_path, monkeypatch, pools, cores, threads):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    check(load_cached(source()[0], size=8, cache_dir=tmp_path))
    assert [count for count, _ in pools] == [threads]


def test_a_source_without_validation_pictures_gives_an_empty_split(tmp_path):
    for _ in range(2):
        dataset = load_cached(source(validation=[])[0], size=8, cache_dir=tmp_path)
        assert dataset.validation.images.shape == (0, 8, 8, 3)
        assert len(dataset.validation) == 0


def test_names_of_files_do_not_control_the_terminal(capsys):
    dataset = dataclasses.replace(source()[0].open(), passed_over=("cat/\x1b[2J\n[red]x.txt",))
    print_passed_over(dataset)
    warn(dataset.passed_over[0])
    shown = "cat/\ufffd[2J\ufffd[red]x.txt"
    line, warning = capsys.readouterr().err.splitlines()
    assert line == f"set: 1 file is passed over as no picture: {shown}"
    assert warning == f"warning: {shown}"


def test_a_broken_picture_leaves_nothing_behind(tmp_path):
    broken = [*PICTURES[:3], Picture(where="cat/4.png", encoded=b"?", label=0)]
    with pytest.raises(UserError, match=r"^cat/4\.png is not a picture"):
        load_cached(source(train=broken)[0], size=8, cache_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.is_dir()] == []
    check(load_cached(source()[0], size=8, cache_dir=tmp_path))


def broken(count: int) -> list[Picture]:
    return [Picture(where=f"cat/{index}.png", encoded=b"?", label=0) for index in range(count)]


def test_one_error_lists_all_unreadable_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 1)
    some = source(train=[*broken(2), *PICTURES[:8]], validation=[PICTURES[8], *broken(3)[2:]])[0]
    message = r"cat/{}\.png is not a picture that can be read \(the format is none of .*\); repair or remove it"
    with pytest.raises(
        UserError, match="^3 pictures cannot be read: " + r" \| ".join(map(message.format, "012")) + "$"
    ):
        load_cached(some, size=8, cache_dir=tmp_path)


@pytest.mark.parametrize(("count", "dots"), [(10, ""), (11, r" \| \.\.\.")])
def test_an_error_lists_at_most_ten_unreadable_pictures(tmp_path, count, dots):
    with pytest.raises(
        UserError, match=rf"^{count} pictures cannot be read: cat/0\.png .* \| cat/9\.png [^|]* remove it{dots}$"
    ) as caught:
        load_cached(source(train=broken(count))[0], size=8, cache_dir=tmp_path)
    assert str(caught.value).count(".png") == 10


def test_an_error_of_the_whole_source_is_reported_once(tmp_path):
    class Locked(list):
        def __getitem__(self, index):
            raise UserError("some.zip has a password")

    with pytest.raises(UserError, match=r"^some\.zip has a password$"):
        load_cached(source(train=Locked(PICTURES[:8]))[0], size=8, cache_dir=tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def garble(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize("damage", [cut, grow, garble, Path.unlink])
@pytest.mark.parametrize(
    "name", [f"{split}_{array}.npy" for split in ("train", "validation") for array in ("images", "labels")]
)
def test_a_damaged_entry_is_decoded_again(tmp_path, name, damage):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    damage(tmp_path / "some-8" / name)
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


def unlist(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bytes": []}))


@pytest.mark.parametrize(
    "damage",
    [cut, garble, Path.unlink, unlist, *(lambda path, text=text: path.write_text(text) for text in ("[]", "{}"))],
)
def test_an_entry_with_a_damaged_description_is_decoded_again(tmp_path, damage):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    damage(tmp_path / "some-8" / "entry.json")
    if damage is not cut:  # which only removes the last line feed
        check(load_cached(some, size=8, cache_dir=tmp_path))
        assert len(calls) == 2


@pytest.mark.parametrize(
    "name", [f"{split}_{array}.npy" for split in ("train", "validation") for array in ("images", "labels")]
)
def test_an_entry_with_a_flipped_bit_is_decoded_again(tmp_path, capsys, name):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    path, random = tmp_path / "some-8" / name, np.random.default_rng(0)
    for number in range(5):
        content = bytearray(path.read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
        check(load_cached(some, size=8, cache_dir=tmp_path))
        assert len(calls) == 2 + number
        line = f"{tmp_path / 'some-8'} is damaged, or of another version: its pictures are decoded again"
        assert f"{line}\n" in capsys.readouterr().err


def test_a_large_entry_is_compared_with_its_checksums_when_a_file_has_changed(tmp_path, monkeypatch):
    some, calls = source()
    compared = []
    monkeypatch.setattr("jaxcnn.data.entry.HASHED", 0)
    monkeypatch.setattr(
        "jaxcnn.data.entry.checksum_chunks", lambda path: compared.append(path.name) or checksum_chunks(path)
    )
    path = tmp_path / "some-8" / "train_images.npy"
    load_cached(some, size=8, cache_dir=tmp_path)
    for again, change in (
        (False, lambda: None),
        (True, lambda: os.utime(path)),
        (False, lambda: None),
        (True, (tmp_path / "some-8" / "compared.json").unlink),
        (True, lambda: (tmp_path / "some-8" / "compared.json").write_text("[]")),
    ):
        compared.clear()
        change()
        check(load_cached(some, size=8, cache_dir=tmp_path))
        assert ("train_images.npy" in compared) == again
    assert len(calls) == 1
    garble(path)
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


@pytest.mark.parametrize(("before", "after"), [(b"'descr'", b"'descr/"), (b"'<i4'", b"',i4'")])
def test_a_large_entry_whose_disk_has_flipped_a_bit_in_a_header_is_decoded_again(tmp_path, monkeypatch, before, after):
    """Its files are not compared with their checksums, as none has changed."""
    some, calls = source()
    monkeypatch.setattr("jaxcnn.data.entry.HASHED", 0)
    for _ in range(2):
        load_cached(some, size=8, cache_dir=tmp_path)
    path = tmp_path / "some-8" / "train_labels.npy"
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    os.utime(path, ns=(time, time))
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


@pytest.mark.parametrize("key", ["names", "wnids", "checksum", "checksums", "bytes"])
def test_an_entry_whose_description_was_changed_is_decoded_again(tmp_path, key):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    path = tmp_path / "some-8" / "entry.json"
    entry = json.loads(path.read_text())
    changed = {"names": ["a", "b", "d"], "wnids": ["n1", "n2", "n7"]}.get(key, {})
    path.write_text(json.dumps(entry | {key: changed}))
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


@pytest.mark.parametrize("label", [3, 16391])
def test_an_entry_of_an_earlier_version_is_used_if_its_labels_are_of_its_classes(tmp_path, label):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    path = tmp_path / "some-8" / "entry.json"
    entry = {name: value for name, value in json.loads(path.read_text()).items() if not name.startswith("checksum")}
    path.write_text(json.dumps(entry))
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 1
    labels = np.load(tmp_path / "some-8" / "train_labels.npy")
    labels[5] = label
    np.save(tmp_path / "some-8" / "train_labels.npy", labels)
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


def test_an_entry_of_an_older_version_is_decoded_again(tmp_path):
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    path = tmp_path / "some-8" / "entry.json"
    entry = json.loads(path.read_text())
    for number, older in enumerate(({"version": cache.VERSION - 1}, {"decoder": DECODER - 1})):
        path.write_text(json.dumps(entry | older))
        check(load_cached(some, size=8, cache_dir=tmp_path))
        assert len(calls) == 2 + number


@pytest.mark.parametrize("text", [{"name": "caf\udce9"}, {"names": ["a", "caf\udce9", "c"]}])
def test_an_entry_whose_names_are_not_unicode_is_decoded_again(tmp_path, text):
    """Earlier versions wrote such entries for folders whose names are not UTF-8."""
    some, calls = source()
    load_cached(some, size=8, cache_dir=tmp_path)
    path = tmp_path / "some-8" / "entry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | text))
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert len(calls) == 2


def test_a_file_in_place_of_the_cache_folder_is_refused(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*cache/some-8: .*; choose another --data\.cache_dir"):
        load_cached(source()[0], size=8, cache_dir=tmp_path / "cache")


def test_a_disk_that_is_too_full_is_refused_before_decoding(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(11 * 8 * 8 * 3 - 1))
    message = rf"too full: the decoded pictures take 0\.0 MB in {tmp_path}, where 0\.0 MB are free; make room"
    with pytest.raises(UserError, match=message):
        load_cached(source()[0], size=8, cache_dir=tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(11 * 8 * 8 * 3))
    check(load_cached(source()[0], size=8, cache_dir=tmp_path))


def test_what_a_killed_process_has_left_is_removed_before_the_disk_is_measured(tmp_path, monkeypatch):
    left = tmp_path / "some-8.partial" / "train_images.npy"
    left.parent.mkdir()
    left.touch()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0 if left.exists() else 10**6))
    check(load_cached(source()[0], size=8, cache_dir=tmp_path))


def test_each_fit_has_an_entry_and_stretching_keeps_the_name_of_earlier_versions(tmp_path):
    some, calls = source()
    fits = {
        "some-8": STRETCH,
        "some-9-crop": Resize(mode="crop", side=9),
        "some-8-pad": Resize(mode="pad"),
        "some-8-stretch-bilinear": Resize(filter="bilinear"),
    }
    for number, (name, resize) in enumerate(fits.items(), start=1):
        for _ in range(2):
            dataset = load_cached(some, size=8, resize=resize, cache_dir=tmp_path)
            assert dataset.resize == resize
            assert len(calls) == number
        stored = decode(PICTURES[0].encoded, size=8, resize=resize, where="x")
        assert np.array_equal(dataset.train.images[0], stored)
        assert (tmp_path / name / "entry.json").exists()


def test_a_cropped_entry_shows_the_middle_of_its_squares(tmp_path):
    resize = Resize(mode="crop", side=11)
    dataset = load_cached(source()[0], size=8, resize=resize, cache_dir=tmp_path)
    for split in (dataset.train, dataset.validation, dataset.train.select(np.array([3, 1]))):
        assert split.images.shape[1:] == (11, 11, 3)
        assert split.shown.shape == (len(split), 8, 8, 3)
        assert np.array_equal(split.shown[:], split.images[:][:, 2:10, 2:10])
    assert not np.array_equal(dataset.train.shown[:], dataset.train.images[:][:, 1:9, 1:9])


def run(code: str, folder: Path, **options) -> subprocess.Popen[str]:
    """Runs `code` in a new process, with the names of this module and `folder` defined."""
    start = f"import sys; sys.path[:0] = {sys.path!r}\nfrom pathlib import Path\nfolder = Path({str(folder)!r})\n"
    here = f"import importlib.util as u; spec = u.spec_from_file_location('this', {__file__!r})\n"
    this = "this = u.module_from_spec(spec); spec.loader.exec_module(this); globals().update(vars(this))\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + here + this + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


FULL_DISK = """
import resource
many = PICTURES * 40
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # larger writes fail as on a full disk
try:
    load_cached(source(train=many)[0], size=8, cache_dir=folder)
except UserError as error:
    print(error)
"""


def test_a_disk_that_fills_up_reports_the_size_and_leaves_no_files(tmp_path):
    process = run(FULL_DISK, tmp_path)
    output, errors = process.communicate(timeout=60)
    assert output == (
        f"the disk is full: the decoded pictures take 0.1 MB in {tmp_path}; "
        "make room or choose another --data.cache_dir\n"
    ), errors
    assert {file.name for file in tmp_path.iterdir()} <= {"some.lock"}  # Which some versions of filelock remove.


STUCK = """
import time
class Stuck(list):
    def __getitem__(self, index):
        if index == 6:
            print("half", flush=True)
            time.sleep(600)
        return super().__getitem__(index)
cache.CHUNK = 2 * 8 * 8 * 3
load_cached(source(train=Stuck(PICTURES[:8]))[0], size=8, cache_dir=folder)
"""


def test_the_partial_entry_of_a_killed_process_is_never_used(tmp_path):
    process = run(STUCK, tmp_path)
    assert process.stdout.readline() == "half\n"
    partial = tmp_path / "some-8.partial"
    assert (partial / "train_images.npy").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert partial.exists()

    some, calls = source()
    check(load_cached(some, size=8, cache_dir=tmp_path))
    assert calls == ["some"]
    assert not partial.exists()


TOGETHER = """
import os, time
class Slow(list):
    def __getitem__(self, index):
        while len([*folder.glob("begun-*")]) < 3:
            time.sleep(0.001)
        time.sleep(0.02)
        return super().__getitem__(index)
print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.001)
(folder / f"begun-{os.getpid()}").touch()
some, calls = source(train=Slow(PICTURES[:8]))
check(load_cached(some, size=8, cache_dir=folder))
print(len(calls))
"""


def test_one_of_several_processes_decodes(tmp_path):
    processes = [run(TOGETHER, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert sorted(output for output, _ in outputs) == ["0\n", "0\n", "1\n"], outputs
    assert any("waiting for another process" in errors for _, errors in outputs)


def test_one_of_several_threads_decodes(tmp_path):
    some, calls = source()
    threads = [
        threading.Thread(target=load_cached, args=(some,), kwargs={"size": 8, "cache_dir": tmp_path}) for _ in "123"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
def test_on_a_drive_without_locks_a_killed_process_can_be_given_up(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def give_up(line):
        said.append(line)
        lock.unlink()

    lock, said = tmp_path / "some.lock", []
    lock.write_text("7\nanother-machine\n")
    monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setattr("jaxcnn.data.entry.print_line", give_up)
    with locked(tmp_path / "some-8", lock):
        assert said == [f"waiting for another process that decodes the same pictures; if it was killed, remove {lock}"]


def test_progress_goes_to_standard_error(tmp_path, capfd):
    load_cached(source(name="set [/] [red]")[0], size=8, cache_dir=tmp_path)
    output, errors = capfd.readouterr()
    assert output == ""
    assert "decoding set [/] [red]" in errors
    assert "11/11" in errors
