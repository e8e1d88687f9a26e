"""The Open Inference Protocol, with stock clients and with malformed requests."""

import base64
import contextlib
import dataclasses
import gzip
import json
import struct
import time
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from server import model, settings
from server.picture import Cost
from server.protocols import AbandonedError
from server.protocols.open_inference import InferQuery
from tests.server.wire import COLOURS, encode, error, post, text

INFER = "/v2/models/colours/infer"
BLUE = np.full((1, 8, 8, 3), (0, 0, 250), np.uint8)
PIXELS = np.array([np.full((8, 8, 3), colour) for colour in COLOURS.values()], np.uint8)[:4]


@pytest.fixture
def triton_client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def best(probabilities: np.ndarray) -> list[str]:
    return [[*COLOURS][i] for i in probabilities.argmax(1)]


# A stock client


def test_tritonclient_finds_the_server_and_the_model(triton_client):
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("colours")
    assert triton_client.is_model_ready("colours", "1")
    assert not triton_client.is_model_ready("shapes")
    assert triton_client.get_server_metadata()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    ]
    assert triton_client.get_model_metadata("colours", "1") == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 5]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 5]},
        ],
    }


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", np.uint8), ("FP32", np.float32)])
def test_tritonclient_sends_pixels(triton_client, client, datatype, dtype, binary_in, binary_out):
    tensor = triton.InferInput("image", [4, 8, 8, 3], datatype)
    tensor.set_data_from_numpy(PIXELS.astype(dtype), binary_data=binary_in)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "logits")]
    result = triton_client.infer("colours", [tensor], request_id="number 7", outputs=outputs)
    assert result.get_response()["id"] == "number 7"
    assert best(result.as_numpy("probabilities")) == [*COLOURS][:4]
    logits = result.as_numpy("logits")
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(shifted / shifted.sum(1, keepdims=True), result.as_numpy("probabilities"), rtol=1e-5)
    native = post(client, encode(COLOURS["red"])).json()["top_predictions"][0]["prob"]
    assert result.as_numpy("probabilities")[0].max() == pytest.approx(native, rel=1e-6)


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_tritonclient_sends_files(triton_client, shape):
    names = ["white", "black", "red"]
    files = [encode(COLOURS[name], "JPEG", (30 + i, 20)) for i, name in enumerate(names)]
    tensor = triton.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(files, object).reshape(shape))
    result = triton_client.infer("colours", [tensor], model_version="1")
    assert best(result.as_numpy("probabilities")) == names  # All outputs are sent if none is named.
    assert result.as_numpy("logits").shape == (3, 5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_compresses_requests(triton_client, algorithm):
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([encode(COLOURS["blue"])], object))
    result = triton_client.infer("colours", [tensor], request_compression_algorithm=algorithm)
    assert result.as_numpy("probabilities").argmax() == 2


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_gets_the_best_classes(triton_client, binary):
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([encode(COLOURS["blue"]), encode(COLOURS["red"])], object))
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    found = triton_client.infer("colours", [tensor], outputs=outputs).as_numpy("probabilities")
    assert found.shape == (2, 2)
    rows = [[value.decode() if binary else value for value in row] for row in found.tolist()]
    assert [row[0].split(":")[1:] for row in rows] == [["2", "blue"], ["0", "red"]]
    assert float(rows[0][0].split(":")[0]) > float(rows[0][1].split(":")[0])


def test_tritonclient_reads_configuration_statistics_and_index(triton_client, client):
    config = triton_client.get_model_config("colours")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [8, 8, 3]}]
    assert config["output"][0] == {"name": "logits", "data_type": "TYPE_FP32", "dims": [5]}
    assert config["max_batch_size"] == 4

    (before,) = triton_client.get_inference_statistics("colours", "1")["model_stats"]
    assert post(client, encode(COLOURS["red"])).status_code == 200
    (after,) = triton_client.get_inference_statistics()["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 1
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        counts = [found["inference_stats"][part]["count"] for found in (before, after)]
        assert counts[1] == counts[0] + 1
        assert after["inference_stats"][part]["ns"] > before["inference_stats"][part]["ns"]
    assert triton_client.get_model_repository_index() == [
        {"name": "colours", "version": "1", "state": "READY", "reason": ""}
    ]


def test_an_output_without_classes_has_no_best_ones(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "seeing.onnx", heatmap=True)
    with serve(JAXCNN_MODEL=str(path)) as server:
        output = {"name": "heatmap", "parameters": {"classification": 1}}
        response = server.client.post("/v2/models/seeing/infer", json={"inputs": [tensor()], "outputs": [output]})
        assert response.status_code == 400
        assert "The output heatmap has no classes" in error(response)


def test_tritonclient_gets_the_heat_map(serve, model_builder, tmp_path):
    path = model_builder(tmp_path / "seeing.onnx", heatmap=True)
    with serve(JAXCNN_MODEL=str(path)) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.get_model_metadata("seeing")["outputs"][2] == {
            "name": "heatmap",
            "datatype": "FP32",
            "shape": [-1, 4, 2],
        }
        tensor = triton.InferInput("image", [1, 8, 8, 3], "UINT8")
        image = np.zeros((1, 8, 8, 3), np.uint8)
        image[0, 6:, 4:] = [0, 250, 0]
        tensor.set_data_from_numpy(image)
        heatmap = client.infer("seeing", [tensor]).as_numpy("heatmap")
        np.testing.assert_allclose(heatmap, [[[0, 0], [0, 0], [0, 0], [0, 1]]], atol=1e-6)


def test_tritonclient_receives_the_error_message(triton_client):
    tensor = triton.InferInput("image", [1, 8, 9, 3], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 8, 9, 3), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"`shape` must be \[pictures, 8, 8, 3\]"):
        triton_client.infer("colours", [tensor])


# The protocol in JSON


def tensor(**changes: object) -> dict[str, object]:
    whole = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": BLUE.ravel().tolist()}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def infer(client, *, path=INFER, tensors=None, **fields):
    return client.post(path, json={"inputs": [tensor()] if tensors is None else tensors, **fields})


@pytest.mark.parametrize("path", [INFER, "/v2/models/colours/versions/1/infer"])
@pytest.mark.parametrize("data", [BLUE.ravel().tolist(), BLUE.tolist()])
def test_data_flat_or_nested(client, path, data):
    answer = infer(client, path=path, tensors=[tensor(data=data)], outputs=[{"name": "probabilities"}]).json()
    assert (answer["model_name"], answer["model_version"], "id" in answer) == ("colours", "1", False)
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [1, 5])
    assert np.argmax(output["data"]) == 2


def test_files_in_base64(client):
    files = tensor(datatype="BYTES", shape=[2], data=[text(encode(COLOURS[name])) for name in ("green", "black")])
    answer = infer(client, tensors=[files], id="").json()
    assert answer["id"] == ""
    assert best(np.reshape(answer["outputs"][1]["data"], (2, 5))) == ["green", "black"]


def test_only_requested_outputs_are_binary(client):
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "probabilities"}]
    response = infer(client, outputs=outputs, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    size = int(response.headers["inference-header-content-length"])
    logits, probabilities = json.loads(response.content[:size])["outputs"]
    assert len(logits["data"]) == 5
    assert probabilities["parameters"] == {"binary_data_size": 20}
    assert np.frombuffer(response.content[size:], "<f4").argmax() == 2


@pytest.mark.parametrize("value", [0.4, 249.6, 250.4])
def test_floating_point_pixels_are_rounded(client, value):
    whole = infer(client, tensors=[tensor(data=[0, 0, round(value)] * 64)]).json()
    rounded = infer(client, tensors=[tensor(datatype="FP32", data=[0, 0.3, value] * 64)]).json()
    assert rounded == whole


def test_health_has_live_and_ready(client):
    assert client.get("/v2/health/live").json()["live"] is True
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert client.get("/v2/models/colours/ready").json() == {"name": "colours", "ready": True}
    assert client.get("/v2").json()["name"] == "jaxcnn"


@pytest.mark.parametrize("suffix", ["", "/ready", "/infer"])
@pytest.mark.parametrize("other", ["shapes", "colours/versions/2", "shapes/versions/1", "%20"])
def test_another_model_is_404(client, other, suffix):
    path = f"/v2/models/{other}{suffix}"
    response = infer(client, path=path) if suffix == "/infer" else client.get(path)
    assert response.status_code == 404
    assert "the server serves only" in error(response)


ONE = {"name": "probabilities"}
FLAG = "`binary_data_output` must be true or false"
WRONG = [
    ({"tensors": []}, "`inputs` must be a list of one tensor"),
    ({"tensors": [tensor(), tensor()]}, "`inputs` must be a list of one tensor"),
    ({"tensors": {}}, "`inputs` must be a list of one tensor"),
    ({"tensors": [3]}, "`inputs` must be a list of one tensor"),
    ({"tensors": [tensor(name="input")]}, "There is no input 'input'"),
    ({"tensors": [tensor(name=None)]}, "There is no input 'None'"),
    ({"tensors": [tensor(datatype="INT64")]}, "`datatype` must be UINT8, FP32, or BYTES for picture files"),
    ({"tensors": [tensor(datatype=["UINT8"])]}, "`datatype` must be UINT8, FP32, or BYTES for picture files"),
    ({"tensors": [tensor(shape="1,8,8,3")]}, "`shape` must be a list of positive integers"),
    ({"tensors": [tensor(shape=[True, 8, 8, 3])]}, "`shape` must be a list of positive integers"),
    ({"tensors": [tensor(shape=[0, 8, 8, 3], data=[])]}, "`shape` must be a list of positive integers"),
    ({"tensors": [tensor(shape=[-1, 8, 8, 3])]}, "`shape` must be a list of positive integers"),
    ({"tensors": [tensor(shape=[])]}, "`shape` must be [pictures, 8, 8, 3]"),
    ({"tensors": [tensor(shape=[4])]}, "`shape` must be [pictures, 8, 8, 3]"),
    ({"tensors": [tensor(shape=[1, 3, 8, 8])]}, "`shape` must be [pictures, 8, 8, 3]"),
    ({"tensors": [tensor(data=None)]}, "has no data: send `data`, or `binary_data_size`"),
    ({"tensors": [tensor(data=[0] * 191)]}, "does not fill the shape [1, 8, 8, 3]"),
    ({"tensors": [tensor(data=[[0] * 192])]}, "does not fill the shape"),
    ({"tensors": [tensor(data=BLUE[0].tolist())]}, "does not fill the shape"),
    ({"tensors": [tensor(data=[[0] * 96, [0] * 95])]}, "does not fill the shape"),
    ({"tensors": [tensor(data=[[0] * 192, 0])]}, "does not fill the shape"),
    ({"tensors": [tensor(data=[])]}, "does not fill the shape"),
    ({"tensors": [tensor(data=[[]])]}, "does not fill the shape"),
    ({"tensors": [tensor(data="AAAA")]}, "`data` must be a list of integers"),
    ({"tensors": [tensor(data=7)]}, "`data` must be a list of integers"),
    ({"tensors": [tensor(data=["0"] * 192)]}, "`data` must be a list of integers"),
    ({"tensors": [tensor(data=[0.0] * 192)]}, "`data` must be a list of integers"),
    ({"tensors": [tensor(data=[True] * 192)]}, "`data` must be a list of integers"),
    ({"tensors": [tensor(data=[None] * 192, datatype="FP32")]}, "`data` must be a list of numbers"),
    ({"tensors": [tensor(data=[256] * 192)]}, "from 0 to 255"),
    ({"tensors": [tensor(data=[-1] * 192)]}, "from 0 to 255"),
    ({"tensors": [tensor(data=[1e300] * 192, datatype="FP32")]}, "from 0 to 255"),
    ({"tensors": [tensor(data=[2**63] * 192)]}, "from 0 to 255"),
    ({"tensors": [tensor(datatype="BYTES", shape=[1, 2], data=["QQ=="])]}, "`shape` must be [pictures]"),
    ({"tensors": [tensor(datatype="BYTES", shape=[2], data=["QQ=="])]}, "does not fill the shape [2]"),
    ({"tensors": [tensor(datatype="BYTES", shape=[1], data=["*"])]}, "`data[0]` is not base64"),
    ({"tensors": [tensor(datatype="BYTES", shape=[1], data=[["QQ==", "QQ=="]])]}, "`data[0]` must be a string"),
    ({"tensors": [tensor(datatype="BYTES", shape=[1], data="QQ==")]}, "`data` must be a list of base64 strings"),
    (
        {"tensors": [tensor(datatype="BYTES", shape=[1], data=["QQ=="])]},
        "data[0]: This is not a picture in a supported format",
    ),
    ({"tensors": [tensor(parameters=[])]}, "`parameters` must be an object"),
    ({"tensors": [tensor(parameters={"binary_data_size": 3})]}, "`binary_data_size` must be the number of bytes"),
    ({"tensors": [tensor(data=None, parameters={"binary_data_size": "0"})]}, "must be the number of bytes"),
    ({"tensors": [tensor(parameters={"shared_memory_region": "x"})]}, "Shared memory is not supported"),
    ({"outputs": {}}, "`outputs` must be a list of objects"),
    ({"outputs": ["probabilities"]}, "`outputs` must be a list of objects"),
    ({"outputs": [{"name": "features"}]}, "`outputs` may name each of logits, probabilities once"),
    ({"outputs": [{"name": ["probabilities"]}]}, "`outputs` may name each of"),
    ({"outputs": [ONE, ONE]}, "`outputs` may name each of"),
    ({"outputs": [{**ONE, "parameters": {"classification": 6}}]}, "`classification` must be an integer from 0 to 5"),
    ({"outputs": [{**ONE, "parameters": {"classification": -1}}]}, "`classification` must be an integer from 0 to 5"),
    ({"outputs": [{**ONE, "parameters": {"classification": True}}]}, "`classification` must be an integer from 0 to 5"),
    ({"outputs": [{**ONE, "parameters": {"binary_data": 1}}]}, "`binary_data` must be true or false"),
    ({"outputs": [{**ONE, "parameters": 1}]}, "`parameters` must be an object"),
    ({"parameters": {"binary_data_output": "yes"}}, FLAG),
    ({"id": 3}, "`id` must be a string"),
]


def test_null_is_the_same_as_absent(client):
    whole = infer(client).json()
    outputs = [{"name": output["name"], "parameters": None} for output in whole["outputs"]]
    for changes in (
        {"outputs": None, "parameters": None, "id": None},
        {"outputs": outputs, "parameters": {"binary_data_output": None}},
        {"tensors": [{**tensor(), "parameters": None}]},
        {"tensors": [{**tensor(), "parameters": {"binary_data_size": None}}]},
    ):
        response = infer(client, **changes)
        assert response.status_code == 200, response.text
        assert response.json() == whole


def test_null_beside_binary_data_is_the_same_as_absent(client):
    pixels = BLUE.tobytes()
    image = {**tensor(), "data": None, "parameters": {"binary_data_size": len(pixels)}}
    head = json.dumps({"inputs": [image]}).encode()
    response = client.post(INFER, content=head + pixels, headers={"Inference-Header-Content-Length": str(len(head))})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("fields", "complaint"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_malformed_requests_are_400(client, fields, complaint):
    response = infer(client, **fields)
    assert response.status_code == 400, response.text
    assert complaint in error(response)


def test_strings_of_different_sizes_are_not_padded_in_memory(client):
    response = infer(client, tensors=[tensor(data=["x" * 400_000] + ["y"] * 5000)])
    assert response.status_code == 400


def test_too_many_pictures_are_refused_before_they_are_read(client):
    assert infer(client, tensors=[tensor(shape=[5, 8, 8, 3], data=[])]).status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"inputs": ' * 2000])
def test_a_body_that_is_not_a_json_object_is_400(client, body):
    response = client.post(INFER, content=body)
    assert response.status_code == 400
    assert '{"inputs": [{"name": "image"' in error(response)


# The binary extension, by hand


def binary(client, data: bytes, *, size: object = None, header: str | None = None, **changes: object):
    parameters = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [tensor(data=None, parameters=parameters, **changes)]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)) if header is None else header}
    return client.post(INFER, content=head + data, headers=headers)


def test_binary_pixels_are_little_endian(client):
    response = binary(client, BLUE.astype("<f4").tobytes(), datatype="FP32")
    assert best(np.array([response.json()["outputs"][1]["data"]])) == ["blue"]


@pytest.mark.parametrize("header", ["-1", "x", "1e3", "", "999999", "0", "9" * 30, "10"])
def test_a_wrong_length_of_the_json_text_is_400(client, header):
    response = binary(client, BLUE.tobytes(), header=header)
    assert response.status_code == 400
    error(response)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (BLUE.tobytes()[:-1], {}),
        (BLUE.tobytes() + b"x", {}),
        (BLUE.tobytes(), {"size": 191}),
        (BLUE.tobytes(), {"size": 193}),
        (BLUE.tobytes(), {"size": -1}),
        (BLUE.tobytes(), {"size": True}),
        (b"", {}),
        (BLUE.astype("<f4").tobytes(), {}),
        (np.full(192, np.nan, "<f4").tobytes(), {"datatype": "FP32"}),
        (np.full(192, np.inf, "<f4").tobytes(), {"datatype": "FP32"}),
        (b"\1\0\0", {"datatype": "BYTES", "shape": [1]}),
        (b"\2\0\0\0x", {"datatype": "BYTES", "shape": [1]}),
        (b"\xff\xff\xff\xffx", {"datatype": "BYTES", "shape": [1]}),
        (struct.pack("<I", 1) + b"x" + struct.pack("<I", 0), {"datatype": "BYTES", "shape": [1]}),
        (struct.pack("<I", 0), {"datatype": "BYTES", "shape": [1]}),
    ],
)
def test_wrong_binary_data_is_400(client, data, options):
    response = binary(client, data, **options)
    assert response.status_code == 400
    error(response)


def test_bytes_without_a_tensor_are_400(client):
    head = json.dumps({"inputs": [tensor()]}).encode()
    response = client.post(INFER, content=head + b"x", headers={"Inference-Header-Content-Length": str(len(head))})
    assert response.status_code == 400
    assert "no tensor has a `binary_data_size`" in error(response)


# Anything at all


@pytest.fixture(scope="module")
def loaded(model_path):
    return model.load(model_path, max_batch=2, threads=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([8, 3, "image", "UINT8"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "id", "binary_data_size"]
            ),
            inner,
        )
    ),
)


class Wanted:
    """A request for which nothing costs too much, and which is wanted as long as it says."""

    def __init__(self, answers=()):
        self._answers = iter(answers)

    def is_wanted(self) -> bool:
        return next(self._answers, True)

    def check_cost(self, cost) -> None:
        assert cost.pixels > 0


@given(
    changes=st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON),
    fields=st.dictionaries(st.sampled_from(["id", "inputs", "outputs", "parameters"]), JSON),
    rest=st.binary(),
    header=st.none() | st.integers(-3, 3) | st.text(),
)
def test_any_request_is_parsed_or_refused(loaded, changes, fields, rest, header):
    head = json.dumps({"inputs": [{**tensor(), **changes}], **fields}).encode()
    json_size = str(len(head) + header) if isinstance(header, int) else header
    query = InferQuery(body=head + rest, json_size=json_size, limits=settings.Settings())
    with contextlib.suppress(HTTPException):
        decoded = query.decode(loaded, Wanted())
        assert decoded.images.shape[1:] == (8, 8, 3)


def split(body: bytes, json_size: str | None, encoding: str = "identity") -> tuple[bytes, bytes] | None:
    """The JSON text and the binary data of a body; None if it is refused."""
    query = InferQuery(body=body, encoding=encoding, json_size=json_size, limits=settings.Settings())
    try:
        text_, binary = query._split()
    except HTTPException:
        return None
    return bytes(text_), bytes(binary)


@given(head=st.binary(max_size=20), rest=st.binary(max_size=20), zeros=st.integers(0, 3))
@pytest.mark.parametrize(
    ("encoding", "encode_"), [("identity", bytes), ("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_body_is_split_where_the_header_says(encoding, encode_, head, rest, zeros):
    body = encode_(head + rest)
    assert split(body, "0" * zeros + str(len(head)), encoding) == (head, rest)
    assert split(body, None, encoding) == (head + rest, b"")


@given(body=st.binary(max_size=20), header=st.integers() | st.text(max_size=13) | st.from_regex(r"\s*[+-]?[0-9_]+\s*"))
def test_a_header_that_is_no_length_within_the_body_is_refused(body, header):
    is_length = str(header) in {f"{'0' * zeros}{size}" for zeros in range(12) for size in range(len(body) + 1)}
    found = split(body, str(header))
    assert (found is not None) == (is_length and len(str(header)) <= 12)


@given(files=st.lists(st.binary(max_size=30), max_size=4), cut=st.integers(0, 40))
def test_any_binary_files_are_parsed_or_refused(loaded, files, cut):
    data = b"".join(struct.pack("<I", len(data)) + data for data in files)[:cut]
    parameters = {"binary_data_size": len(data)}
    head = json.dumps(
        {"inputs": [tensor(datatype="BYTES", shape=[len(files) or 1], data=None, parameters=parameters)]}
    ).encode()
    with pytest.raises(HTTPException):
        InferQuery(body=head + data, json_size=str(len(head)), limits=settings.Settings()).decode(loaded, Wanted())


def test_base64_files_are_read_like_binary_ones(loaded):
    data = base64.b64encode(encode(COLOURS["red"])).decode()
    body = json.dumps({"inputs": [tensor(datatype="BYTES", shape=[1, 1], data=[[data]])]}).encode()
    decoded = InferQuery(body=body, json_size=None, limits=settings.Settings()).decode(loaded, Wanted())
    assert (decoded.images == [250, 0, 0]).all()


def test_pictures_of_an_abandoned_query_are_not_opened(loaded):
    good = base64.b64encode(encode(COLOURS["red"])).decode()
    bad = base64.b64encode(b"no picture").decode()  # It would be refused.
    body = json.dumps({"inputs": [tensor(datatype="BYTES", shape=[3], data=[good, good, bad])]}).encode()
    query = InferQuery(body=body, json_size=None, limits=settings.Settings())
    with pytest.raises(AbandonedError):
        query.decode(loaded, Wanted([True, True, False]))


def test_pictures_of_an_abandoned_query_are_not_decoded(loaded):
    good = base64.b64encode(encode(COLOURS["red"])).decode()
    bad = base64.b64encode(encode(COLOURS["red"])[:-30]).decode()  # It would be refused.
    body = json.dumps({"inputs": [tensor(datatype="BYTES", shape=[3], data=[good, good, bad])]}).encode()
    query = InferQuery(body=body, json_size=None, limits=settings.Settings())
    with pytest.raises(AbandonedError):
        query.decode(loaded, Wanted([True, True, True, True, True, False]))


# The memory that JSON takes


class Costs(list):
    """A request that notes what it costs."""

    def is_wanted(self) -> bool:
        return True

    def check_cost(self, cost: Cost) -> None:
        self.append(cost)


def json_query(data: object, *, datatype: str = "UINT8", count: int = 1, **limits: int) -> InferQuery:
    shape = [count] if datatype == "BYTES" else [count, 8, 8, 3]
    body = json.dumps({"inputs": [tensor(datatype=datatype, shape=shape, data=data)]}).encode()
    return InferQuery(body=body, json_size=None, limits=settings.Settings(**limits))


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_large_tensor_takes_no_more_memory_than_its_cost(loaded, datatype, is_nested):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)) + (0.5 if datatype == "FP32" else 0)
    pixels = np.minimum(pixels, 255)
    data = pixels.tolist() if is_nested else pixels.ravel().tolist()
    query, costs = json_query(data, datatype=datatype, count=100, max_images=100), Costs()
    tracemalloc.start()
    try:
        assert (query.decode(loaded, costs).images == np.rint(pixels)).all()
        # The parser reserves twelve times the text, and uses a part of that.
        parse = tracemalloc.get_traced_memory()[1] - 12 * len(query.body)
    finally:
        tracemalloc.stop()
    assert len(costs) == 1
    assert parse <= costs[0].bytes


def test_a_large_tensor_is_not_parsed_before_its_cost_is_known(loaded, monkeypatch):
    def refuse(cost):
        raise ZeroDivisionError

    monkeypatch.setattr("orjson.loads", None)
    work = SimpleNamespace(is_wanted=lambda: True, check_cost=refuse)
    with pytest.raises(ZeroDivisionError):
        json_query([0] * 11_000, count=32).decode(loaded, work)


def test_a_small_tensor_costs_nothing(loaded):
    costs = Costs()
    assert json_query(BLUE.tolist()).decode(loaded, costs).images.tolist() == BLUE.tolist()
    assert costs == []


def refused(query: InferQuery, loaded: model.Model) -> str:
    with pytest.raises(HTTPException) as caught:
        query.decode(loaded, Costs())
    assert caught.value.status_code == 413
    return caught.value.detail


def test_a_tensor_that_takes_too_much_is_refused_before_it_is_parsed(loaded, monkeypatch):
    monkeypatch.setattr("orjson.loads", None)
    assert "at most 4" in refused(json_query([0] * 11_000, max_images=4), loaded)
    for limits in ({"max_decode_bytes": 2**20}, {"max_request_pixels": 50_000}):
        assert "send the tensor as binary data" in refused(json_query([0] * 20_000, max_images=100, **limits), loaded)


def test_many_values_beside_picture_files_are_refused(loaded):
    query = json_query([base64.b64encode(encode(COLOURS["red"])).decode()], datatype="BYTES")
    body = query.body[:-1] + b', "note": [' + b"[]," * 11_000 + b"0]}"
    assert "too many values for picture files" in refused(dataclasses.replace(query, body=body), loaded)


def test_the_text_is_not_kept_while_pictures_are_decoded(loaded):
    query = json_query([base64.b64encode(encode(COLOURS["red"])).decode()], datatype="BYTES")
    body = gzip.compress(query.body[:-1] + b', "note": "' + b"a" * 5_000_000 + b'"}')
    kept = []
    work = SimpleNamespace(is_wanted=lambda: True, check_cost=lambda _: kept.append(tracemalloc.get_traced_memory()[0]))
    tracemalloc.start()
    try:
        dataclasses.replace(query, body=body, encoding="gzip").decode(loaded, work)
    finally:
        tracemalloc.stop()
    assert kept[0] < 500_000


def test_no_more_elements_are_read_than_the_shape_has(loaded, monkeypatch):
    head = json.dumps(
        {"inputs": [tensor(datatype="BYTES", shape=[2], data=None, parameters={"binary_data_size": 10_000_000})]}
    ).encode()
    query = InferQuery(body=head + bytes(10_000_000), json_size=str(len(head)), limits=settings.Settings())
    start = time.process_time()
    with pytest.raises(HTTPException, match="send as many values as it has"):
        query.decode(loaded, Wanted())
    assert time.process_time() - start < 0.2  # To read all takes a second.
    monkeypatch.setattr("pybase64.b64decode", None)
    with pytest.raises(HTTPException, match="send as many values as it has"):
        json_query(["QQ=="] * 9000, datatype="BYTES").decode(loaded, Wanted())
