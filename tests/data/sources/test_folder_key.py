import os
import time

import pytest
from pictures import write_class_folders

from jaxcnn.data.sources import folder, folder_key
from jaxcnn.data.sources.folder import folder_source


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of 2 x 4 pictures, which counts as large and has not changed for a while."""
    monkeypatch.setattr(folder_key, "MANY", 8)
    pets = write_class_folders(tmp_path / "pets", count=4, size=8)
    settle(pets)
    return pets


def settle(pets):
    """Lets an hour pass since the folders have changed."""
    for path in (pets, *(path for path in pets.iterdir() if path.is_dir())):
        os.utime(path, (0, path.stat().st_mtime - 3600))


def find(pets):
    return folder_source(str(pets), cache_dir=pets.parent / "cache")


def test_the_second_start_does_not_look_at_every_file(pets, monkeypatch):
    monkeypatch.setattr(folder_key, "SAMPLED", 2)
    key, stat, looked = find(pets).key, os.stat, []
    assert key == folder_source(str(pets)).key
    with monkeypatch.context() as patch:
        patch.setattr(folder, "list_folder", None)
        patch.setattr(os, "stat", lambda path, **options: looked.append(str(path)) or stat(path, **options))
        again = find(pets)
    assert again.key == key
    assert len([path for path in looked if path.endswith((".png", ".jpg"))]) == 2
    assert len(again.open().train) == 8


def add(pets):
    (pets / "cat" / "new.png").write_bytes((pets / "cat" / "0.png").read_bytes())


def remove(pets):
    (pets / "cat" / "1.png").unlink()


def rename(pets):
    (pets / "cat" / "1.png").rename(pets / "cat" / "9.png")


def move(pets):
    (pets / "cat" / "1.png").rename(pets / "dog" / "9.png")


def add_class(pets):
    (pets / "eel").mkdir()


def overwrite(pets):
    path = pets / "dog" / "3.png"
    path.write_bytes(path.read_bytes() + b"0")


@pytest.mark.parametrize("change", [add, remove, rename, move, add_class, overwrite])
def test_a_folder_that_has_changed_is_listed_again(pets, change):
    before = find(pets).key
    change(pets)
    settle(pets)
    after = find(pets).key
    assert after != before
    assert after == folder_source(str(pets)).key == find(pets).key


def test_a_file_that_is_not_looked_at_may_be_overwritten_unseen(pets, monkeypatch):
    monkeypatch.setattr(folder_key, "SAMPLED", 1)
    before = find(pets).key
    overwrite(pets)
    assert find(pets).key == before


def records(pets):
    cache = pets.parent / "cache"
    return list(cache.iterdir()) if cache.exists() else []


def test_no_key_is_kept_of_a_folder_with_few_files(pets, monkeypatch):
    monkeypatch.setattr(folder_key, "MANY", 9)
    find(pets)
    assert records(pets) == []


def test_no_key_is_kept_of_a_folder_that_may_still_be_changing(pets):
    os.utime(pets / "dog", (0, time.time() - 1))
    find(pets)
    assert records(pets) == []


def test_a_damaged_record_is_written_again(pets):
    key = find(pets).key
    (record,) = records(pets)
    for damaged in ("", "[]", "{}", record.read_text().replace(key, key[:-1])):
        record.write_text(damaged)
        assert find(pets).key == key
        assert key in record.read_text()
