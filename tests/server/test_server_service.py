"""Several models in one process: their names, queues, metrics and files."""

import contextlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openapi_spec_validator
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from server import settings
from server.errors import StartError
from server.source import parse_models
from tests.server.wire import COLOURS, encode, error, post, samples, wait_until

PICTURE = encode(COLOURS["red"])
DIGEST = "0123456789abcdef" * 4


# JAXCNN_MODEL


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Empty files whose names could be taken for something else, below the current folder."""
    monkeypatch.chdir(tmp_path)
    models = ("models/b.onnx", "models/a.int8.onnx", "models/._b.onnx", "models/notes.txt")
    for path in (*models, "x=1/m.onnx", "one,two.onnx", "m.onnx"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "models" / "folder.onnx").mkdir()
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m.onnx", {"m": "m.onnx"}),
        ("absent/m.onnx", {"m": "absent/m.onnx"}),
        ("m.onnx, models/b.onnx", {"m": "m.onnx", "b": "models/b.onnx"}),
        ("birds=m.onnx,models/b.onnx", {"birds": "m.onnx", "b": "models/b.onnx"}),
        ("models", {"a.int8": "models/a.int8.onnx", "b": "models/b.onnx"}),
        ("m.onnx,models", {"m": "m.onnx", "a.int8": "models/a.int8.onnx", "b": "models/b.onnx"}),
        ("one,two.onnx", {"one,two": "one,two.onnx"}),
        ("x=1/m.onnx", {"m": "x=1/m.onnx"}),
        ("runs/x=1/m.onnx", {"m": "runs/x=1/m.onnx"}),
        (f"b=https://h.org/a/m.onnx#sha256={DIGEST},m.onnx", {"b": "https://h.org/a/m.onnx", "m": "m.onnx"}),
    ],
)
def test_names_and_files(files, text, expected):
    found = parse_models(text)
    assert {name: str(source) for name, source in found.items()} == expected
    assert [*found] == [*expected]  # The first is the default.


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("m.onnx,", "set it to one or more files, separated by commas, or unset it."),
        ("m.onnx,x=1/m.onnx", "or NAME=FILE where names are the same: two are 'm'"),
        ("a=m.onnx,a=models/b.onnx", "two are 'a'"),
        ("empty", "a folder that has files ending in .onnx: 'empty' has none"),
        ("m.onnx,http://h.org/m.onnx", "one of the schemes file, https, s3, gs, hf"),
        ("a=https://h.org/m.onnx", "https://HOST/PATH#sha256=CHECKSUM"),
    ],
)
def test_models_that_cannot_be_told_apart_or_found_are_refused(files, text, complaint):
    with pytest.raises(StartError) as caught:
        settings.from_environment({"JAXCNN_MODEL": text})
    assert str(caught.value).startswith("JAXCNN_MODEL is invalid: set it to ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


NAMES = st.text("abcz019_.-", min_size=1).filter(lambda name: name[0].isalnum())


@given(st.dictionaries(NAMES, st.text("abc=:/.# ", min_size=1).filter(lambda text: text.strip(" /.")), min_size=1))
def test_any_named_files_keep_their_names(paths):
    text = ",".join(f"{name}=/absent/{path.strip()}" for name, path in paths.items())
    assert {name: str(source) for name, source in parse_models(text).items()} == {
        name: str(Path(f"/absent/{path.strip()}")) for name, path in paths.items()
    }


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(ValueError):
        assert parse_models(text)


def test_an_unknown_default_is_refused_with_the_names():
    with pytest.raises(StartError, match=r"^JAXCNN_DEFAULT_MODEL is 'c', .* set it to one of a, b, or unset it"):
        settings.from_environment({"JAXCNN_MODEL": "a.onnx,b.onnx", "JAXCNN_DEFAULT_MODEL": "c"})


@pytest.mark.parametrize(
    ("threads", "count", "expected"), [(1, 1, 1), (1, 5, 1), (2, 1, 2), (2, 3, 2), (8, 1, 8), (8, 2, 4), (8, 9, 2)]
)
def test_models_divide_the_threads(threads, count, expected):
    text = ",".join(f"{i}.onnx" for i in range(count))
    chosen = settings.from_environment({"JAXCNN_MODEL": text, "JAXCNN_THREADS": str(threads)})
    assert chosen.threads_per_model == expected


# A running server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pair(serve_module, model_builder, folder):
    """A server of a folder: `colours`, and `shades`, which has other classes and another size, and is the default."""
    model_builder(folder / "colours.onnx")
    shades = {"names": ["a", "b", "c", "d", "e"], "image_size": [16, 8]}
    model_builder(
        folder / "shades.onnx", side=16, width=8, metadata=shades, heatmap=True, heatmap_shape=("batch", 8, 2)
    )
    with serve_module(JAXCNN_MODEL=str(folder), JAXCNN_DEFAULT_MODEL="shades", JAXCNN_RELOAD_SECONDS="1") as server:
        yield server


def classify(client: httpx.Client, path: str, colour: str = "red") -> httpx.Response:
    return client.post(path, content=encode(COLOURS[colour]), headers={"Content-Type": "image/png"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/predict", "a"),
        ("/invocations", "a"),
        ("/models/shades/predict", "a"),
        ("/models/colours/predict", "red"),
        ("/models/colours/predict?top_k=5", "red"),
    ],
)
def test_the_path_chooses_the_model(pair, path, expected):
    assert classify(pair.client, path).json()["predicted_class"] == expected


def test_what_a_model_has_is_asked_of_that_model(pair):
    assert "heatmap" in classify(pair.client, "/models/shades/predict?heatmap=true").json()
    response = classify(pair.client, "/models/colours/predict?heatmap=true")
    assert (response.status_code, error(response)[:28]) == (400, "This model has no heat map: ")


@pytest.mark.parametrize("path", ["/models/birds/predict", "/v2/models/birds/infer", "/v2/models/birds"])
def test_an_unknown_model_is_404_with_the_names(pair, path):
    response = pair.client.request("GET" if path.endswith("birds") else "POST", path)
    assert response.status_code == 404
    assert error(response) == "There is no model of this name: the server serves only 'colours', 'shades'."


def test_the_open_inference_protocol_lists_and_runs_all(pair):
    with triton.InferenceServerClient(f"127.0.0.1:{pair.port}") as client:
        assert [entry["name"] for entry in client.get_model_repository_index()] == ["colours", "shades"]
        for name, shape, best in (("colours", [8, 8], "blue"), ("shades", [16, 8], "c")):
            assert client.is_model_ready(name)
            assert client.get_model_metadata(name)["inputs"][0]["shape"] == [-1, *shape, 3]
            tensor = triton.InferInput("image", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([encode(COLOURS["blue"])], object))
            wanted = [triton.InferRequestedOutput("probabilities", class_count=1)]
            (found,) = client.infer(name, [tensor], outputs=wanted).as_numpy("probabilities")[0]
            assert found.decode().split(":")[2] == best
        stats = client.get_inference_statistics()["model_stats"]
        assert [entry["name"] for entry in stats] == ["colours", "shades"]


def test_each_model_has_its_metrics(pair):
    before = samples(pair.client)
    for _ in range(3):
        assert classify(pair.client, "/models/colours/predict").status_code == 200
    after = samples(pair.client)
    for name, count in (("colours", 3), ("shades", 0)):
        for metric in ("jaxcnn_batch_size_sum", "jaxcnn_queue_wait_seconds_count"):
            assert after[metric, name] == before[metric, name] + count
        assert after["jaxcnn_shed_total", name, "requests"] == 0
    assert {key[2] for key in after if key[0] == "jaxcnn_model_info"} == {"colours", "shades"}


def test_the_documentation_covers_all_models(pair):
    document = pair.client.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    names = {"type": "string", "enum": ["colours", "shades"]}
    assert document["paths"]["/v2/models/{name}"]["get"]["parameters"][0]["schema"] == names
    _, pixels, _ = document["components"]["schemas"]["InferenceRequest"]["properties"]["inputs"]["items"]["oneOf"]
    assert pixels["properties"]["shape"]["prefixItems"][1:] == [{"enum": [8, 16]}, {"const": 8}, {"const": 3}]


def test_the_page_shows_the_default_model(pair):
    assert pair.client.get("/model.json").json()["name"] == "shades"


def test_each_file_is_replaced_by_itself(pair, folder, model_builder, tmp_path):
    digest = pair.client.get("/model.json").json()["sha256"]
    # A good file for one model, and a damaged one for the other.
    model_builder(tmp_path / "new.onnx", metadata={"names": ["r", "g", "b", "w", "k"]}).replace(folder / "colours.onnx")
    shutil.copy(folder / "shades.onnx", tmp_path / "kept.onnx")
    (tmp_path / "damaged").write_bytes(b"no model")
    os.replace(tmp_path / "damaged", folder / "shades.onnx")
    wait_until(lambda: classify(pair.client, "/models/colours/predict").json()["predicted_class"] == "r")
    warning = "The new model file of shades was rejected, and the old model is still served: the server's log says why."
    wait_until(lambda: pair.client.get("/readyz").json() == {"status": "ready", "warning": warning})
    assert classify(pair.client, "/predict").json()["predicted_class"] == "a"
    assert pair.client.get("/model.json").json()["sha256"] == digest
    # The documentation is that of the new file.
    assert pair.client.get("/openapi.json").status_code == 200
    found = samples(pair.client)
    assert found["jaxcnn_model_reloads_total", "colours", "succeeded"] == 1
    assert found["jaxcnn_model_reloads_total", "shades", "failed"] == 1
    os.replace(tmp_path / "kept.onnx", folder / "shades.onnx")
    wait_until(lambda: "warning" not in pair.client.get("/readyz").json())


def test_a_model_that_is_busy_keeps_nobody_from_another(serve, model_builder, tmp_path):
    model_builder(tmp_path / "slow.onnx", work=8)
    model_builder(tmp_path / "quick.onnx")
    limits = {"JAXCNN_MAX_REQUESTS": "3", "JAXCNN_THREADS": "1", "JAXCNN_MAX_BATCH": "1"}
    text = f"{tmp_path / 'quick.onnx'},{tmp_path / 'slow.onnx'}"
    with serve(JAXCNN_MODEL=text, **limits) as server, ThreadPoolExecutor(8) as threads:
        url = f"http://127.0.0.1:{server.port}/models/slow/predict"
        flood = [
            threads.submit(httpx.post, url, content=PICTURE, headers={"Content-Type": "image/png"}, timeout=60)
            for _ in range(8)
        ]
        wait_until(lambda: samples(server.client)["jaxcnn_shed_total", "slow", "requests"] >= 1)
        assert post(server.client, PICTURE).json()["predicted_class"] == "red"
        assert not all(answer.done() for answer in flood)  # Some that came before it still wait.
        statuses = [answer.result().status_code for answer in flood]
        assert statuses.count(200) >= 3
        assert set(statuses) == {200, 503}
        assert samples(server.client)["jaxcnn_shed_total", "quick", "requests"] == 0


def test_one_invalid_model_stops_the_start(start, model_path, tmp_path):
    process = start(tmp_path / "log", JAXCNN_MODEL=f"{model_path},other=/absent/model.onnx")
    assert process.wait(30) == 3
    assert "The model /absent/model.onnx is not a file: set JAXCNN_MODEL" in (tmp_path / "log").read_text()
