"""What arguments and standard input name: links that lead nowhere, odd names, and more zips than may be open."""

import io
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pictures import encode, make_picture, write_zip

from jaxcnn.bulk import picture_files
from jaxcnn.bulk.picture_files import PictureFile, find_pictures
from jaxcnn.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*arguments: str, lines: bytes = b"") -> list[str]:
    """Returns the names of the files that arguments and standard input stand for."""
    files, _ = find_pictures(arguments, io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    return [file.name for file in files]


@pytest.mark.parametrize("argument", ["lost.png", "*.png", "l[o]st.png"])
def test_a_link_that_leads_nowhere_is_a_file_that_cannot_be_read(here, argument):
    (here / "lost.png").symlink_to("absent")
    assert find(argument) == ["lost.png"]
    with pytest.raises(UserError, match=r"^lost.png cannot be read: No such file or directory; repair or remove it$"):
        PictureFile("lost.png").read()


def test_films_in_a_folder_are_not_read(here, monkeypatch):
    """The films of a phone may take gigabytes. A picture needs no ending."""
    (here / "photos").mkdir()
    (here / "photos" / "a").write_bytes(encode(make_picture(0, seed=0), "TIFF"))
    (here / "photos" / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(10**6))
    picture, film = find_pictures(["photos"], [])[0]
    assert picture.read() == (here / "photos" / "a").read_bytes()
    monkeypatch.setattr(picture_files, "read_file", lambda path: pytest.fail(f"{path} is read"))
    with pytest.raises(UserError, match=r"^photos/film.mp4 is no picture$"):
        film.read()


def test_a_pattern_may_match_a_name_that_begins_with_a_tilde(here):
    (here / "~draft.png").touch()
    assert find("*.png") == ["~draft.png"]


def test_names_on_standard_input_may_hold_any_bytes_but_line_feeds():
    lines = b"a\xff.png\n\nb\rc.png\r\nlast.png"
    assert find("-", lines=lines) == ["a\udcff.png", "b\rc.png", "last.png"]


def test_null_characters_are_one_line():
    message = "^names on standard input are separated by null characters; give one a line, without -print0$"
    with pytest.raises(UserError, match=message):
        find("-", lines=b"a.png\0b.png\0")
    with pytest.raises(UserError, match=r"cannot be read: embedded null byte; repair or remove it$"):
        PictureFile("a\0b.png").read()


def test_a_pipe_that_nobody_writes_to_is_empty(here):
    """Opening it would wait forever, and the command could not be interrupted."""
    os.mkfifo("pipe.png")
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        assert PictureFile("pipe.png").read() == b""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_pipe_with_a_picture_is_read_to_its_end():
    """A shell names it: predict MODEL <(curl URL)."""
    reading, writing = os.pipe()

    def write():
        time.sleep(0.1)
        with open(writing, "wb") as file:
            file.write(bytes(100_000))

    with ThreadPoolExecutor() as pool:
        written = pool.submit(write)
        assert PictureFile(f"/dev/fd/{reading}").read() == bytes(100_000)
        written.result()
    os.close(reading)


def test_more_zips_than_may_be_open(here):
    count, limits = 150, resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(count):
        write_zip(here / f"{number:03}.zip", {"a.png": str(number).encode()})
    # The process has some open already.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 80, limits[1]))
    try:
        files = list(find_pictures(["*.zip"], [])[0])
        assert [file.read() for file in files] == [str(number).encode() for number in range(count)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_picture_that_has_left_its_zip_is_one_line(here):
    for number in range(40):
        write_zip(here / f"{number:02}.zip", {"a.png": b"1"})
    first, *_ = find_pictures(["*.zip"], [])[0]
    write_zip(here / "00.zip", {"b.png": b"1"})
    # The zip has been closed meanwhile, as others were opened.
    with pytest.raises(UserError, match=r"^a.png is no longer in 00.zip; run the same command again$"):
        first.read()


MEASURE = """
import sys, tracemalloc
from jaxcnn.bulk.picture_files import find_pictures
find_pictures(sys.argv[1:], [])  # What is imported at the first call does not count.
tracemalloc.start()
found = find_pictures(sys.argv[1:], [])
print(tracemalloc.get_traced_memory()[1] / found[1])
"""


@pytest.mark.parametrize(("name", "size"), [("photos", 300), ("photos.zip", 1600)])
def test_memory_of_a_name(here, name, size):
    """The README states how many bytes each file takes at most. The types that tests check would take more."""
    files = {f"IMG_{number:08}.jpg": b"" for number in range(4000)}
    (here / "photos").mkdir()
    for file in files:
        (here / "photos" / file).touch()
    write_zip(here / "photos.zip", files)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    taken = float(subprocess.check_output([sys.executable, "-c", MEASURE, name], env=environment))
    assert size / 2 < taken < size
