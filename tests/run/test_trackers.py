"""Whole runs in real trackers: a local server of MLflow, and the offline store of Weights & Biases.

See `clients.py` for the environment that they run in.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from clients import environment, run_in
from ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
OPTIONS = "--model.widths 4 --model.blocks 0 --data.image_size 8 --epochs 2 --note".split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def training(workdir, cache, *options):
    """Returns the arguments of a small training."""
    line = ["-m", "jaxcnn.train", "digits", *OPTIONS, "a note", "--workdir", str(workdir), "--data.cache_dir", cache]
    return [*line, *options]


@contextlib.contextmanager
def serving(clients, folder):
    """Starts a server of MLflow and yields its address and a function that ends it."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [clients, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 120
            while not is_healthy(port):
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def is_healthy(port) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


READ_MLFLOW = """
import json, sys, tempfile, hashlib
from pathlib import Path
import mlflow, numpy as np
uri, experiment = sys.argv[1:]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
found = client.get_experiment_by_name(experiment)
runs = client.search_runs([found.experiment_id])
assert len(runs) == 1, runs
run = runs[0]
files = [file.path for file in client.list_artifacts(run.info.run_id)]
files += [file.path for file in client.list_artifacts(run.info.run_id, "model")]
answer = {"id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "params": run.data.params,
          "tags": run.data.tags, "files": files, "final": run.data.metrics.get("final/top1"),
          "steps": [metric.step for metric in client.get_metric_history(run.info.run_id, "validation/top1")]}
if "model/MLmodel" in files:
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    answer["inputs"] = model.metadata.get_input_schema().to_dict()
    answer["outputs"] = model.metadata.get_output_schema().to_dict()
    answer["shape"] = list(model.predict({"image": np.zeros((2, 8, 8, 3), np.uint8)})["probabilities"].shape)
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, "model/model.onnx", folder)
        answer["sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
print(json.dumps(answer))
"""


def read_mlflow(clients, uri, experiment="jaxcnn"):
    return json.loads(run_in(clients, ["-c", READ_MLFLOW, uri, experiment]).stdout.splitlines()[-1])


def test_mlflow_has_parameters_metrics_model_and_report_and_a_resumed_run_goes_on(clients, tmp_path, cache):
    workdir = tmp_path / "digits"
    with serving(clients, tmp_path) as (uri, _):
        run_in(clients, training(workdir, cache, "--log.mlflow", uri))
        first = read_mlflow(clients, uri)
        assert (first["name"], first["status"]) == ("digits", "FINISHED")
        assert first["params"]["model.widths"] == "(4,)"
        assert first["tags"]["mlflow.note.content"] == "a note"
        evaluation = json.loads((workdir / "evaluation.json").read_text())
        assert first["final"] == pytest.approx(evaluation["top1"])
        assert len(first["steps"]) == 2
        assert {"report.html", "model", "model/MLmodel", "model/model.onnx"} <= set(first["files"])
        assert first["sha256"] == hashlib.sha256((workdir / "model.onnx").read_bytes()).hexdigest()
        (image,) = first["inputs"]
        assert (image["name"], image["tensor-spec"]) == ("image", {"dtype": "uint8", "shape": [-1, 8, 8, 3]})
        assert {value["name"] for value in first["outputs"]} == {"logits", "probabilities"}
        assert first["shape"] == [2, 10]
        # More epochs are more steps of the same run.
        run_in(clients, training(workdir, cache, "--epochs", "3", "--log.mlflow", uri))
        second = read_mlflow(clients, uri)
        assert second["id"] == first["id"]
        assert len(second["steps"]) == 3
        assert second["params"]["epochs"] == "2"
        assert second["tags"]["epochs"] == "3"
        assert second["status"] == "FINISHED"


def test_a_stopped_run_is_killed_in_mlflow_and_goes_on(clients, tmp_path, cache):
    workdir, store = tmp_path / "digits", f"sqlite:///{tmp_path}/mlflow.db"
    line = training(workdir, cache, "--epochs", "40", "--log.mlflow", store)
    variables = environment(MLFLOW_EXPERIMENT_NAME="pets")
    with subprocess.Popen([clients, *line], cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True) as process:
        while not list((workdir / "checkpoints").glob("[1-9]*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    stopped = read_mlflow(clients, store, "pets")
    assert stopped["status"] == "KILLED"
    run_in(clients, line, MLFLOW_EXPERIMENT_NAME="pets")
    finished = read_mlflow(clients, store, "pets")
    assert (finished["id"], finished["status"]) == (stopped["id"], "FINISHED")
    assert set(stopped["steps"]) < set(finished["steps"])


def test_a_closed_port_costs_a_line_and_no_run(clients, tmp_path, cache):
    plain, started = tmp_path / "plain", time.monotonic()
    run_in(clients, training(plain, cache))
    seconds = time.monotonic() - started
    workdir, started = tmp_path / "logged", time.monotonic()
    done = run_in(clients, training(workdir, cache, "--log.mlflow", f"http://127.0.0.1:{free_port()}"))
    # The import of the client, and the bound of the wait at the end.
    assert time.monotonic() - started < seconds + 30
    assert done.stderr.count("log.mlflow") == done.stderr.count("warning: log.mlflow does not get all of this run") == 1
    assert (workdir / "model.onnx").exists()


def test_a_server_that_dies_in_the_middle_stops_nothing(clients, tmp_path, cache):
    workdir = tmp_path / "digits"
    with serving(clients, tmp_path) as (uri, server):
        line = training(workdir, cache, "--epochs", "20", "--log.mlflow", uri)
        with subprocess.Popen([clients, *line], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as run:
            while not list((workdir / "checkpoints").glob("[1-9]*")):
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.1)
            os.killpg(server.pid, signal.SIGKILL)
            _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert said.count("log.mlflow does not get all of this run") == 1
    assert (workdir / "model.onnx").exists()


READ_WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2

def read_records(data):
    # LevelDB's log: blocks of 32 kB with checksum, length and kind (whole, first, middle, last) before each part.
    position = 7
    while position < len(data):
        left = 32_768 - position % 32_768
        length, kind = struct.unpack_from("<HB", data, position + 4) if left >= 7 else (0, 0)
        if not kind:
            position += left
            continue
        part = data[position + 7 : position + 7 + length]
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield whole
        position += 7 + length

answers = []
for path in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/run-*.wandb")):
    answer = {"steps": [], "config": {}, "artifacts": 0}
    for data in read_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            answer |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
        if kind in ("run", "config"):
            update = record.run.config.update if kind == "run" else record.config.update
            answer["config"] |= {item.key or item.nested_key[0]: item.value_json for item in update}
        if kind == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "validation/top1" in items:
                answer["steps"].append(items["step"])
        if kind == "exit":
            answer["exit"] = record.exit.exit_code
        if kind == "artifact" or (kind == "request" and record.request.HasField("log_artifact")):
            answer["artifacts"] += 1
    answers.append(answer)
print(json.dumps(answers))
"""


def test_wandb_has_the_run_in_its_offline_store(clients, tmp_path, cache):
    workdir = tmp_path / "digits"
    for epochs in ("2", "3"):
        run_in(clients, training(workdir, cache, "--epochs", epochs, "--log.wandb", "pets"), WANDB_MODE="offline")
        time.sleep(1.5)  # Folders of the store are named by the second.
    first, second = json.loads(run_in(clients, ["-c", READ_WANDB, str(workdir)]).stdout.splitlines()[-1])
    assert first["id"] == second["id"] == json.loads((workdir / "tracking.json").read_text())["id"]
    assert (first["project"], first["name"], first["exit"]) == ("pets", "digits", 0)
    assert first["config"]["model.widths"] == "[4]"
    assert (len(first["steps"]), len(second["steps"])) == (2, 1)
    assert second["config"]["epochs"] == "3"
    assert first["artifacts"] >= 1


def test_a_client_that_cannot_log_costs_a_line_and_no_run(clients, tmp_path, cache):
    # It has no key, and no server.
    variables = {"WANDB_MODE": "online", "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}", "HOME": str(tmp_path)}
    done = run_in(clients, training(tmp_path / "digits", cache, "--log.wandb", "pets"), **variables)
    assert done.stderr.count("warning: log.wandb does not get all of this run") == 1
    assert (tmp_path / "digits" / "model.onnx").exists()
