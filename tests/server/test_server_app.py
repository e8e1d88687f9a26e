"""The HTTP contract and hostile requests, against a real uvicorn over a real socket."""

import gzip
import json
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.server.wire import COLOURS, YELLOW, encode, error, head, log_lines, post, read_answer, text


@pytest.fixture
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as it:
        yield it


# The contract


def test_the_original_contract_to_the_letter(client):
    response = client.post("/predict", json={"image": text(encode((250, 0, 0)))})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert list(answer) == ["predicted_class", "top_predictions"]
    assert answer["predicted_class"] == "red"
    assert [list(guess) for guess in answer["top_predictions"]] == [["class", "prob"]] * 3
    assert [guess["class"] for guess in answer["top_predictions"]] == ["red", "white", "black"]
    probabilities = [guess["prob"] for guess in answer["top_predictions"]]
    assert all(isinstance(probability, float) for probability in probabilities)
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.9 < sum(probabilities) <= 1


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize(("kind", "content_type"), [("JPEG", "image/jpeg"), ("PNG", "application/octet-stream")])
def test_a_raw_body(client, name, kind, content_type):
    assert post(client, encode(COLOURS[name], kind), content_type).json()["predicted_class"] == name


def test_multipart(client):
    response = client.post("/predict", files={"image": ("cat.png", encode((0, 0, 250)))})
    assert response.json()["predicted_class"] == "blue"


def test_a_list_is_answered_in_order(client):
    names = ["blue", "red", "black", "blue"]
    pictures = [encode(COLOURS[name], size=(9 + i, 5)) for i, name in enumerate(names)]
    by_json = client.post("/predict", json={"images": [text(picture) for picture in pictures]})
    by_form = client.post("/predict?top_k=1", files=[("images", picture) for picture in pictures])
    assert [result["predicted_class"] for result in by_json.json()] == names
    assert [result["predicted_class"] for result in by_form.json()] == names
    assert [len(result["top_predictions"]) for result in by_form.json()] == [1] * 4


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k(client, top_k):
    response = post(client, encode((0, 250, 0)), params={"top_k": top_k})
    predictions = response.json()["top_predictions"]
    assert predictions[0]["class"] == "green"
    assert len({guess["class"] for guess in predictions}) == top_k


@pytest.mark.parametrize("top_k", ["0", "6", "-1", "1.0", "", "two", "1_0", "٣", "9" * 5000, "\x00", "%ff"])
def test_a_wrong_top_k_is_refused(client, top_k):
    response = post(client, encode((0, 250, 0)), params={"top_k": top_k})
    assert response.status_code == 400
    assert error(response) == "`top_k` must be an integer from 1 to 5, the number of classes."


def test_a_connection_is_kept_and_mixed_requests_keep_their_answers(server):
    def ask(name: str) -> bool:
        answer = post(client, encode(COLOURS[name], "JPEG", (300, 200)), "image/jpeg").json()
        return answer["predicted_class"] == name

    with (
        httpx.Client(base_url=server.client.base_url, trust_env=False) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        assert all(threads.map(ask, [*COLOURS] * 12))


def test_health(client):
    for path in ("/healthz", "/readyz"):
        assert client.get(path).status_code == 200
        assert client.head(path).status_code == 200
    assert client.get("/readyz").json() == {"status": "ready"}


# Hostile and malformed requests


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"image": 3}', b'{"image": "*"}', b'{"image": ""}', b"[" * 9000]
)
def test_bad_json_is_refused(client, body):
    response = post(client, body, "application/json")
    assert response.status_code == 400
    error(response)


@pytest.mark.parametrize("body", [b"", b"not an image", encode((0, 0, 250))[:-30], encode((0, 0, 250), "JPEG")[:300]])
def test_incomplete_pictures_are_refused(client, body):
    responses = [
        post(client, body),
        client.post("/predict", json={"image": text(body)}),
        client.post("/predict", files={"image": body}),
    ]
    assert [response.status_code for response in responses] == [400] * 3
    assert len({error(response) for response in responses}) == 1


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO", "AVIF"])
def test_formats_outside_the_allow_list_are_refused(client, kind):
    response = post(client, encode((0, 0, 250), kind), "image/png")
    assert response.status_code == 400
    assert "send JPEG, PNG, WebP, GIF or BMP" in error(response)


def unusual_pictures() -> dict[str, tuple[bytes, str]]:
    blue = Image.new("RGB", (9, 9), (0, 0, 250))
    clear = Image.new("RGBA", (9, 9), (0, 0, 250, 0))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "CMYK": (blue.convert("CMYK"), "JPEG", {}, "blue"),
        "16 bits": (Image.new("I;16", (9, 9), 65_000), "PNG", {}, "white"),
        "palette with alpha": (blue.quantize(2), "PNG", {"transparency": b"\0\0"}, "white"),
        "transparent": (clear, "WEBP", {}, "white"),
        "gray": (Image.new("L", (9, 9), 250), "JPEG", {}, "white"),
        "animated": (blue, "GIF", {"save_all": True, "append_images": [Image.new("RGB", (9, 9), "red")]}, "blue"),
        "turned": (blue, "JPEG", {"exif": turned}, "blue"),
    }
    return {name: (encoded(image, kind, options), expected) for name, (image, kind, options, expected) in made.items()}


def encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("data", "expected"), unusual_pictures().values(), ids=unusual_pictures())
def test_unusual_pictures_are_read(client, data, expected):
    assert post(client, data).json()["predicted_class"] == expected


def test_a_bomb_in_the_text_of_a_picture_is_skipped(client):
    picture = encode((0, 0, 250))
    content = b"zTXtcomment\0\0" + zlib.compress(b" " * 50_000_000)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    assert post(client, picture[:33] + chunk + picture[33:]).json() == post(client, picture).json()


def test_a_decompression_bomb_is_refused(client):
    stream = BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 20_000
    response = post(client, stream.getvalue())
    assert response.status_code == 400
    assert "9000 x 9000 pixels" in error(response)


def test_one_bad_picture_in_a_list_is_named(client):
    response = client.post("/predict", json={"images": [text(encode((0, 0, 0))), text(b"no picture")]})
    assert response.status_code == 400
    assert error(response).startswith("images[1]: This is not a picture in a supported format")


def test_too_many_pictures_are_refused(client):
    picture = encode((0, 0, 0))
    assert error(client.post("/predict", json={"images": [text(picture)] * 5})).endswith("send at most 4.")
    assert client.post("/predict", files=[("images", picture)] * 5).status_code == 413


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_an_unsupported_content_type_is_415(client, content_type):
    response = post(client, b"x", content_type)
    assert response.status_code == 415
    assert "send application/json" in error(response)


def test_a_missing_content_type_is_415(client):
    response = client.post("/predict", content=b"x")
    assert response.status_code == 415


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "x"])
def test_a_body_in_another_compression_is_415(client, encoding):
    response = client.post(
        "/predict", content=b"x", headers={"Content-Type": "image/png", "Content-Encoding": encoding}
    )
    assert response.status_code == 415
    assert "use gzip, deflate or none at all" in error(response)


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_body_is_read(client, encoding, compress):
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    content = compress(json.dumps({"image": text(encode(COLOURS["green"]))}).encode())
    assert client.post("/predict", content=content, headers=headers).json()["predicted_class"] == "green"


@pytest.mark.parametrize(
    ("content", "status", "complaint"),
    [
        (b"", 400, "not one complete gzip stream"),
        (b"no gzip", 400, "not one complete gzip stream"),
        (gzip.compress(b"{}")[:-3], 400, "not one complete gzip stream"),
        (gzip.compress(b"{}") * 2, 400, "not one complete gzip stream"),
        (gzip.compress(bytes(1_000_001)), 413, "too large once decompressed: send at most 1000000 bytes"),
        (gzip.compress(bytes(100_000_000), 1), 413, "too large once decompressed"),
    ],
    ids=["empty", "no gzip", "cut", "two streams", "too large", "bomb"],
)
def test_a_wrongly_compressed_body_is_refused(client, content, status, complaint):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = client.post("/predict", content=content, headers=headers)
    assert response.status_code == status
    assert complaint in error(response)


@pytest.mark.parametrize("path", ["/predict/", "/Predict", "/healthz/", "/%00", "/..%2f..%2fetc/passwd", "/static/x"])
def test_an_unknown_path_is_404(client, path):
    response = client.post(path, content=b"x")
    assert response.status_code == 404
    assert "/predict" in error(response)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/predict"),
        ("PUT", "/predict"),
        ("OPTIONS", "/predict"),
        ("DELETE", "/predict"),
        ("POST", "/healthz"),
        ("PROPFIND", "/readyz"),
        ("POST", "/"),
        ("POST", "/v2"),
        ("GET", "/v2/models/colours/infer"),
    ],
)
def test_an_unsupported_method_is_405(client, method, path):
    response = client.request(method, path)
    assert response.status_code == 405
    assert ("POST" in response.headers["allow"]) == (path in ("/predict", "/v2/models/colours/infer"))
    error(response)


def test_the_largest_body_is_accepted_and_one_byte_more_is_413(client):
    picture = encode((0, 0, 250), "BMP")
    assert post(client, picture + bytes(1_000_000 - len(picture))).json()["predicted_class"] == "blue"
    response = post(client, picture + bytes(1_000_001 - len(picture)))
    assert response.status_code == 413
    assert error(response) == "The body is too large: send at most 1000000 bytes."


def test_a_body_declared_too_large_is_413_before_it_is_sent(connection):
    connection.sendall(head("Content-Length: 1000001", "Expect: 100-continue"))
    status, answer = read_answer(connection)
    assert (status, list(answer)) == (413, ["error"])


def test_a_chunked_body_is_413_before_it_ends(connection):
    connection.sendall(head("Transfer-Encoding: chunked"))
    for _ in range(11):
        connection.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
    assert read_answer(connection)[0] == 413


def test_a_chunked_picture_is_read(client):
    picture = encode((0, 0, 250), "BMP")
    response = client.post(
        "/predict",
        content=(picture[i : i + 100] for i in range(0, len(picture), 100)),
        headers={"Content-Type": "image/bmp"},
    )
    assert response.json()["predicted_class"] == "blue"


def test_nan_from_the_model_is_500_without_details(server, client):
    response = post(client, encode(YELLOW))
    assert response.status_code == 500
    assert error(response) == (
        "Internal server error: try again, or report the X-Request-ID of this response to the operator."
    )
    (line,) = log_lines(server, request_id=response.headers["x-request-id"], level="error")
    assert "FloatingPointError: the model computed probabilities that are not finite" in line["traceback"]
    assert post(client, encode((0, 0, 0))).status_code == 200


def test_a_client_that_disconnects_leaves_no_error(server, client):
    before = server.log.read_text().count("Traceback")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head("Content-Length: 1000") + b"\x89PNG")
    assert post(client, encode((0, 0, 0))).status_code == 200
    assert server.log.read_text().count("Traceback") == before


def test_damaged_metadata_neither_hides_the_picture_nor_fills_the_log(server, client):
    exif = Image.Exif()
    exif[0x010F], exif[0x011A] = "camera", 72.0
    stream = BytesIO()
    Image.new("RGB", (9, 9), (0, 0, 250)).save(stream, "JPEG", exif=exif)
    whole = stream.getvalue()
    start = whole.index(b"Exif") + 14
    for i in range(start, start + 40):
        assert post(client, whole[:i] + b"\x7f" + whole[i + 1 :]).json()["predicted_class"] == "blue"
    assert post(client, b"--x", "multipart/form-data; boundary=y").status_code == 400
    assert not re.search("UserWarning|PIL|boundary", server.log.read_text())


@given(
    content_type=st.sampled_from(
        [
            "application/json",
            "image/png",
            "application/octet-stream",
            "multipart/form-data; boundary=b",
            "multipart/form-data",
        ]
    ),
    body=st.binary() | st.text().map(str.encode) | st.binary().map(lambda content: b"--b\r\n" + content + b"\r\n--b--"),
)
@settings(max_examples=150)
def test_random_bodies_never_fail_the_server(client, content_type, body):
    response = post(client, body, content_type)
    assert response.status_code in (400, 413)
    error(response)


@given(
    content=st.fixed_dictionaries(
        {},
        optional={
            "image": st.text() | st.binary().map(text) | st.none() | st.integers(),
            "images": st.lists(st.text() | st.just(text(encode((0, 0, 0)))), max_size=6) | st.text(),
        },
    )
    | st.recursive(st.none() | st.floats() | st.text(), st.lists),
    top_k=st.sampled_from(["1", "3"]) | st.text(),
)
@settings(max_examples=150)
def test_random_json_never_fails_the_server(client, content, top_k):
    response = client.post(
        "/predict", content=json.dumps(content), headers={"Content-Type": "application/json"}, params={"top_k": top_k}
    )
    assert response.status_code in (200, 400, 413)
    if response.status_code != 200:
        error(response)
