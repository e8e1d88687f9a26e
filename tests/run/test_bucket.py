"""The copy of a workdir in a bucket: what is sent, what is fetched, and what a store that fails costs."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launch import SMALL, check_same_run, launch, train, wait_for_step
from object_store import google_server, open_s3, s3_server

from jaxcnn.errors import TemporaryError, UserError
from jaxcnn.run import bucket
from jaxcnn.run.bucket import Bucket
from jaxcnn.run.workdir import Workdir
from jaxcnn.sweep import parse as parse_sweep
from jaxcnn.train import parse

ROOT = Path(__file__).parent.parent.parent
ADDRESS = "s3://runs/of/mine"


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(server, monkeypatch):
    client = open_s3(server, monkeypatch)
    client.create_bucket(Bucket="runs")
    client.put_object(Bucket="runs", Key="of/mine2", Body=b"of somebody else")
    return client


def keys(s3):
    """Names of the objects of the copy."""
    found = s3.list_objects_v2(Bucket="runs").get("Contents", [])
    return {entry["Key"].removeprefix("of/mine/") for entry in found if entry["Key"].startswith("of/mine/")}


def put(s3, name, content=b"x"):
    s3.put_object(Bucket="runs", Key=f"of/mine/{name}", Body=content)


def read(s3, name):
    return s3.get_object(Bucket="runs", Key=f"of/mine/{name}")["Body"].read()


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def checkpoint(step):
    return {f"checkpoints/{step}/{name}" for name in ("checksums.json", "model/d/1", "_CHECKPOINT_METADATA")}


RECORDS = {"config.json", "metrics.jsonl", "model/README.md"}


@pytest.fixture
def workdir(tmp_path):
    """Files as of a run: records, two checkpoints, and what is not to be copied."""
    folder = tmp_path / "workdir"
    write(folder, *RECORDS, *checkpoint(22), *checkpoint(44))
    write(folder, ".lock", ".config.json.17", "checkpoints/66/model/d/1", "checkpoints/11.damaged/checksums.json")
    write(folder, "checkpoints/66.orbax-checkpoint-tmp/checksums.json", "checkpoints/.hidden/checksums.json")
    return folder


def test_what_is_whole_is_sent_and_fetched(s3, workdir, tmp_path):
    copy = Bucket(ADDRESS)
    copy.update(workdir)
    assert keys(s3) == RECORDS | checkpoint(22) | checkpoint(44)
    assert read(s3, "checkpoints/44/model/d/1") == b"checkpoints/44/model/d/1"
    Bucket(f"{ADDRESS}/").restore(tmp_path / "new")
    assert names(tmp_path / "new") == keys(s3)
    assert all((tmp_path / "new" / name).read_bytes() == name.encode() for name in keys(s3))


def test_only_changes_are_sent_and_old_checkpoints_are_removed(s3, workdir):
    copy = Bucket(ADDRESS)
    copy.update(workdir)
    put(s3, "model/README.md", b"as it was sent")
    write(workdir, *checkpoint(66))
    (workdir / "metrics.jsonl").write_text("more lines than before")
    (workdir / "checkpoints/22").rename(workdir / "checkpoints/22.orbax-checkpoint-tmp")
    copy.update(workdir)
    assert keys(s3) == RECORDS | checkpoint(44) | checkpoint(66)
    assert read(s3, "model/README.md") == b"as it was sent"
    assert read(s3, "metrics.jsonl") == b"more lines than before"
    assert s3.get_object(Bucket="runs", Key="of/mine2")["Body"].read() == b"of somebody else"


def test_the_checksums_of_a_checkpoint_are_sent_last_and_removed_first(s3, workdir, monkeypatch):
    copy, calls = Bucket(ADDRESS), []
    send = copy._send
    monkeypatch.setattr(copy, "_send", lambda name, *rest: (calls.append(name), send(name, *rest)))
    copy.update(workdir)
    assert set(calls[:3]) == RECORDS
    assert [calls[i] for i in (5, 8)] == [f"checkpoints/{step}/checksums.json" for step in (22, 44)]
    removed, store = [], copy._store

    class Recorded:
        def list(self):
            return store.list()

        def write(self, name, content):
            removed.append(name)
            return store.write(name, content)

    copy._opened = Recorded()
    copy._remove_outdated({44})
    assert removed[0] == "checkpoints/22/checksums.json"
    assert set(removed) == checkpoint(22)


def test_a_checkpoint_that_was_cut_short_is_not_fetched(s3, workdir, tmp_path):
    Bucket(ADDRESS).update(workdir)
    put(s3, "checkpoints/88/model/d/1")
    s3.delete_object(Bucket="runs", Key="of/mine/checkpoints/22/checksums.json")
    Bucket(ADDRESS).restore(tmp_path / "new")
    assert names(tmp_path / "new") == RECORDS | checkpoint(44)


def test_google_cloud_storage(workdir, tmp_path, monkeypatch):
    with google_server(monkeypatch) as objects:
        copy = Bucket("gs://runs/of/mine")
        copy.update(workdir)
        assert set(objects) == {f"of/mine/{name}" for name in RECORDS | checkpoint(22) | checkpoint(44)}
        (workdir / "checkpoints/22").rename(workdir / "checkpoints/22.damaged")
        copy.update(workdir)
        Bucket("gs://runs/of/mine").restore(tmp_path / "new")
        assert names(tmp_path / "new") == RECORDS | checkpoint(44)


def test_without_a_checkpoint_nothing_is_fetched(s3, tmp_path):
    put(s3, "config.json")
    put(s3, "checkpoints/88/model/d/1")
    Bucket(ADDRESS).restore(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_workdir_is_kept_unless_the_bucket_is_ahead(s3, workdir):
    Bucket(ADDRESS).update(workdir)
    write(workdir, *checkpoint(55))
    Bucket(ADDRESS).restore(workdir)
    put(s3, "checkpoints/66/checksums.json")
    with pytest.raises(
        UserError, match=rf"{ADDRESS} has a checkpoint of step 66, which .* lacks; give another"
    ) as caught:
        Bucket(ADDRESS).restore(workdir)
    assert "\n" not in str(caught.value)
    (workdir / "metrics.jsonl").write_text("started at another time\nmetrics")
    with pytest.raises(UserError, match=rf"{ADDRESS} has another run than .*; give another"):
        Bucket(ADDRESS).restore(workdir)


def test_names_that_lead_out_of_the_workdir_are_not_fetched(s3, workdir, tmp_path):
    Bucket(ADDRESS).update(workdir)
    for name in ("../stolen", "model/../../stolen", "/stolen", ".lock"):
        put(s3, name)
    Bucket(ADDRESS).restore(tmp_path / "new")
    assert names(tmp_path / "new") == RECORDS | checkpoint(22) | checkpoint(44)
    assert not list(tmp_path.glob("**/stolen"))


def test_a_store_that_fails_stops_no_training_but_a_start(s3, workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bucket, "RETRIES", 0)
    with pytest.raises(
        UserError, match=r"bucket is 's3://absent/run', which cannot be read: .*; check its name"
    ) as caught:
        Bucket("s3://absent/run").restore(tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert type(caught.value) is UserError
    Bucket("s3://absent/run").update(workdir)
    warning = capsys.readouterr().err
    assert "s3://absent/run lacks a part of the run: " in warning
    assert "it is sent with the next checkpoint" in warning.replace("\n", " ")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match=r"which cannot be read"):
        Bucket(ADDRESS).restore(tmp_path / "new")


@pytest.mark.parametrize("error", [ValueError("reset"), KeyboardInterrupt()])
def test_a_run_that_is_fetched_in_part_leaves_nothing(s3, workdir, tmp_path, monkeypatch, error):
    Bucket(ADDRESS).update(workdir)
    read = Bucket._read

    def fail(self, name):
        if name == "config.json":
            raise error
        return read(self, name)

    monkeypatch.setattr(Bucket, "_read", fail)
    new = Workdir(tmp_path / "new")
    with pytest.raises((UserError, KeyboardInterrupt)), new.locked():
        Bucket(ADDRESS).restore(new.path)
    assert not new.path.exists()


def test_a_disk_that_is_full_is_no_error_of_the_bucket(s3, workdir, tmp_path, monkeypatch):
    Bucket(ADDRESS).update(workdir)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device (0.002 MB needed, 0.000 MB free)")

    monkeypatch.setattr(bucket, "write_atomically", fail)
    message = rf"^the run in {ADDRESS} cannot be written to .*/new: No space left on device \(.* free\); make room and"
    with pytest.raises(UserError, match=message):
        Bucket(ADDRESS).restore(tmp_path / "new")


UPDATING = """
import sys
from pathlib import Path
from jaxcnn.run import bucket
bucket.RETRIES = 0
bucket.STALLED = dict.fromkeys(bucket.STALLED, "1")
bucket.Bucket("s3://runs/mine").update(Path(sys.argv[1]))
"""


@pytest.mark.run
def test_a_store_that_never_answers_does_not_stop_the_training(workdir):
    with socket.create_server(("127.0.0.1", 0)) as server:  # Which accepts connections, and reads nothing.
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", UPDATING, str(workdir)],
            cwd=ROOT,
            env=os.environ
            | {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert "s3://runs/mine lacks a part of the run: " in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "address", ["", "s3://", "s3://runs", "s3://runs/", "runs/mine", "https://runs/mine", "s3://a b/c"]
)
def test_an_address_names_a_folder_in_a_bucket(address):
    with pytest.raises(UserError, match=r"bucket is .*; it must be s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"):
        parse(["--bucket", address])


def test_buckets_are_no_workdirs():
    with pytest.raises(UserError, match=r"^workdir is 's3://runs/mine', an address; .*; --bucket keeps a copy"):
        parse(["--workdir", "s3://runs/mine"])
    with pytest.raises(UserError, match=r"^a sweep keeps no copy of its runs in a bucket"):
        parse_sweep(["--seeds", "2", "--bucket", ADDRESS])


@pytest.mark.run
def test_a_run_goes_on_from_the_bucket_when_its_disk_is_lost(s3, tmp_path):
    options = [*SMALL, "--epochs", "3"]
    train(1, tmp_path / "whole", *options)
    (killed,) = launch(1, tmp_path / "lost", *options, "--bucket", ADDRESS)
    wait_for_step([killed], tmp_path / "lost", step=44)
    while not any(name.endswith("/checksums.json") for name in keys(s3)):
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (output,) = train(1, tmp_path / "found", *options, "--bucket", ADDRESS)
    assert "resuming at step" in output
    check_same_run(tmp_path / "found", tmp_path / "whole")
    assert json.loads(read(s3, "evaluation.json")) == json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert read(s3, "model.onnx") == (tmp_path / "found" / "model.onnx").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "jaxcnn.train", "--bucket", "s3://absent/x", "--workdir", str(tmp_path / "refused")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "bucket is 's3://absent/x', which cannot be read" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "refused").exists()
