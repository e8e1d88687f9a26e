import base64
import contextlib
import gc
import gzip
import json
import string
import tracemalloc
import weakref
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from server import model
from server.picture import Cost
from server.protocols import native
from server.protocols.compression import decompress, largest_size
from server.protocols.open_inference import InferQuery
from server.protocols.text import cost_of, parse_object
from server.settings import Settings
from tests.server.wire import encode

JSON = "application/json"
FORM = "multipart/form-data; boundary=edge"
QUOTE = '"'


def parse(content_type: str, body: bytes) -> native.Payload:
    return native.parse(content_type, body, max_images=4)


def refusal(content_type: str, body: bytes) -> tuple[int, str]:
    with pytest.raises(HTTPException) as caught:
        parse(content_type, body)
    return caught.value.status_code, caught.value.detail


def multipart(*parts: tuple[str, bytes], end: str = "--edge--\r\n") -> bytes:
    """Builds a multipart body; each part is a content disposition and the content."""
    body = b"".join(
        f"--edge\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    return body + end.encode()


FILE = 'name="image"; filename="a.jpg"'
FILES = 'name="images"; filename="a.jpg"'


@given(data=st.binary(), breaks=st.lists(st.tuples(st.integers(0, 400), st.sampled_from(string.whitespace))))
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:;BASE64,", "data:image/jpeg;name=a;base64,"])
def test_base64_with_white_space_and_a_data_url(prefix, data, breaks):
    text = base64.b64encode(data).decode()
    for place, white_space in breaks:
        text = text[:place] + white_space + text[place:]
    body = json.dumps({"image": prefix + text}).encode()
    assert parse(JSON, body) == native.Payload([data], is_list=False)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "QQ",
        "QQ=",
        "QQ===",
        "QQ==QQ==",
        "Q",
        "QQ==x",
        "Q=Q=",
        "-_-_",
        "QUJ\u0000D",
        "QUé=",
        "\uff41",
        "🖼",
    ],
)
def test_invalid_base64_is_refused(text):
    status, error = refusal(JSON, json.dumps({"image": text}).encode())
    assert status == 400
    assert error.startswith("`image` is not base64: ")


def test_a_data_url_of_another_encoding_is_refused():
    assert refusal(JSON, b'{"image": "data:image/png,QQ=="}')[0] == 400
    assert refusal(JSON, b'{"image": "data:image/png;base64"}')[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\xfd",
        b"[" * 9000,
        b'{"image": ' * 9000,
        b"1" * 10_000,
        b'{"image": "QQ=="} {}',
        b'{"image": "\\ud800"}',
    ],
)
def test_invalid_json_is_refused(body):
    assert refusal(JSON, body) == (400, 'The body is not JSON: send {"image": "<base64>"}.')


@pytest.mark.parametrize("content", [None, [], "QQ==", 3])
def test_json_that_is_not_an_object_is_refused(content):
    assert refusal(JSON, json.dumps(content).encode()) == (
        400,
        'The body is JSON, but not an object: send {"image": "<base64>"}.',
    )


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"Image": "QQ=="},
        {"image": "QQ==", "images": ["QQ=="]},
        {"image": "QQ==", "images": 1},
        {"image": None},
        {"images": None},
        {"image": None, "images": None},
    ],
)
def test_json_of_another_shape_is_refused(content):
    status, error = refusal(JSON, json.dumps(content).encode())
    assert status == 400
    assert '"image": "<base64>"' in error


def test_null_is_the_same_as_nothing():
    assert parse(JSON, b'{"image": "QQ==", "images": null}') == native.Payload([b"A"], is_list=False)
    assert parse(JSON, b'{"image": null, "images": ["QQ=="]}') == native.Payload([b"A"], is_list=True)


@pytest.mark.parametrize("image", [3, True, [], ["QQ=="], {"b64": "QQ=="}])
def test_an_image_that_is_not_a_string_is_refused(image):
    assert refusal(JSON, json.dumps({"image": image}).encode()) == (
        400,
        "`image` must be a string: the picture file in base64.",
    )


def test_a_list_keeps_its_order():
    body = json.dumps({"images": ["QQ==", "Qg==", "Qw=="]}).encode()
    assert parse(JSON, body) == native.Payload([b"A", b"B", b"C"], is_list=True)
    assert parse(JSON, b'{"images": ["QQ=="]}').is_list


@pytest.mark.parametrize("images", ["QQ==", {}, []])
def test_images_that_are_not_a_list_are_refused(images):
    assert refusal(JSON, json.dumps({"images": images}).encode())[0] == 400


def test_an_error_names_its_place_in_the_list():
    assert refusal(JSON, b'{"images": ["QQ==", "*"]}')[1].startswith("`images[1]` is not base64")
    assert refusal(JSON, b'{"images": ["QQ==", "QQ==", 3]}')[1].startswith("`images[2]` must be a string")


def test_a_list_is_bounded():
    assert len(parse(JSON, json.dumps({"images": ["QQ=="] * 4}).encode()).pictures) == 4
    assert refusal(JSON, json.dumps({"images": ["QQ=="] * 5}).encode())[0] == 413


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "image/png; charset=binary", "IMAGE/X", "application/octet-stream"]
)
def test_a_raw_body_is_the_picture(content_type):
    assert parse(content_type, b"\0\xff") == native.Payload([b"\0\xff"], is_list=False)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"]
)
def test_json_by_any_spelling(content_type):
    assert parse(content_type, b'{"image": "QQ=="}').pictures == [b"A"]


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "imagery/png", "image", ";"],
)
def test_other_content_types_are_refused(content_type):
    status, error = refusal(content_type, b'{"image": "QQ=="}')
    assert status == 415
    assert "send application/json, multipart/form-data" in error


@given(pictures=st.lists(st.binary(), min_size=1, max_size=4))
@pytest.mark.parametrize("is_list", [False, True])
def test_multipart_as_a_client_writes_it(is_list, pictures):
    pictures = pictures if is_list else pictures[:1]
    files = [("images" if is_list else "image", ("name.jpg", data)) for data in pictures]
    request = httpx.Request("POST", "http://test", files=files)
    assert parse(request.headers["content-type"], request.read()) == native.Payload(pictures, is_list=is_list)


# What a parser could take for a boundary, or for a part of one that goes on in the next piece.
CONTENTS = (
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"--edg", b"e", b"edge--", b"\0"]))
    .map(b"".join)
    .filter(lambda content: b"\r\n--edge" not in content and not content.startswith(b"--edge"))
)
FIELDS = st.tuples(
    st.sampled_from(["image", "images", "note", "Image"]),
    st.none() | st.sampled_from(["a.jpg", "", "a b;c=d.png", "\u00e9.jpg", 'a"b.jpg', "a\\b.jpg"]),
    CONTENTS | st.binary(max_size=50).filter(lambda content: b"--edge" not in content),
)
"""A part's name, its file name if it has one, and its content."""


def expected(fields: list[tuple[str, str | None, bytes]]) -> native.Payload | int:
    """The pictures in a form, or the status of its refusal, by the rules of the README."""
    if len(fields) > 4:
        return 413
    parts = [(name, content) for name, file, content in fields if file is not None or name in ("image", "images")]
    names, contents = {name for name, _ in parts}, [content for _, content in parts]
    if names == {"images"} or (names == {"image"} and len(parts) == 1):
        return native.Payload(contents, is_list=names == {"images"})
    return 400


def result(content_type: str, body: bytes) -> native.Payload | int:
    try:
        return parse(content_type, body)
    except HTTPException as error:
        return error.status_code


@given(fields=st.lists(FIELDS, max_size=6))
def test_a_form_is_what_was_encoded(fields):
    parts = [
        (f'name="{name}"' if file is None else f'name="{name}"; filename="{file.replace(QUOTE, "%22")}"', content)
        for name, file, content in fields
    ]
    assert result(FORM, multipart(*parts)) == expected(fields)


@given(fields=st.lists(FIELDS, min_size=1, max_size=6))
def test_a_form_is_what_urllib3_encodes(fields):
    parts = [(name, content if file is None else (file, content)) for name, file, content in fields]
    body, content_type = urllib3.encode_multipart_formdata(parts, boundary="edge")
    assert result(content_type, body) == expected(fields)


def test_multipart_larger_than_a_megabyte_stays_in_memory(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", None)
    data = bytes(range(256)) * 10_000
    assert parse(FORM, multipart((FILE, data))).pictures == [data]


def test_a_file_part_without_a_file_name_is_accepted():
    assert parse(FORM, multipart(('name="image"', b"A\0\xff"))).pictures == [b"A\0\xff"]
    assert parse(FORM, multipart(('name="image"', b""))).pictures == [b""]


def test_text_fields_beside_the_picture_are_ignored():
    assert parse(FORM, multipart(('name="note"', b"hello"), (FILE, b"A"))).pictures == [b"A"]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [('name="note"', b"A")],
        [('name="image"', b"A"), (FILE, b"A")],
        [('name="picture"; filename="a.jpg"', b"A")],
        [(FILE, b"A"), (FILE, b"B")],
        [(FILE, b"A"), (FILES, b"B")],
    ],
)
def test_multipart_without_the_right_file_parts_is_refused(parts):
    status, error = refusal(FORM, multipart(*parts))
    assert (status, error) == (400, "Send one file part named `image`, or one or more named `images`.")


@pytest.mark.parametrize("end", ["", "--edge", "--edge\r\n", "--ed"])
def test_truncated_multipart_is_refused(end):
    status, error = refusal(FORM, multipart((FILE, b"A"), end=end))
    assert status == 400
    assert "closing boundary" in error


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", multipart((FILE, b"A"))),
        ("multipart/form-data; boundary=" + "x" * 10_000, b"--x"),
        ("multipart/form-data; boundary=other", multipart((FILE, b"A"))),
        (FORM, b"no boundary at all"),
        (FORM, b"--edge\r\nContent-Disposition: form-data\r\n\r\nA\r\n--edge--\r\n"),
        (FORM, b"--edge\r\n" + b"X: y\r\n" * 1000 + b"\r\nA\r\n--edge--\r\n"),
        (FORM, b"--edge\r\nX: " + b"y" * 100_000 + b"\r\n\r\nA\r\n--edge--\r\n"),
    ],
)
def test_malformed_multipart_is_refused(content_type, body):
    assert refusal(content_type, body)[0] == 400


@pytest.mark.parametrize(
    "body",
    [multipart((FILE, b"A")), multipart((FILE, b"A"), end="--ed"), multipart(*[(FILE, b"A")] * 5), b"no boundary"],
)
def test_a_form_leaves_nothing_for_the_garbage_collector(monkeypatch, body):
    parsers = []

    class Parser(native.FormParser):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            parsers.append(weakref.ref(self))

    monkeypatch.setattr(native, "FormParser", Parser)
    gc.disable()
    try:
        result(FORM, body)
        assert [parser() for parser in parsers] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("disposition", [FILES, 'name="note"'])
def test_many_parts_are_refused(disposition):
    assert refusal(FORM, multipart(*[(disposition, b"A")] * 5))[0] == 413


@given(
    content_type=st.sampled_from([JSON, FORM, "multipart/form-data; boundary=\xff", "image/png"])
    | st.text(st.characters(max_codepoint=255)),
    body=st.binary()
    | st.lists(st.sampled_from([b"--edge", b"--", b"\r\n", b'"', b"=", b";", b":", FILE.encode(), b"A"])).map(b"".join),
)
def test_any_bytes_are_parsed_or_refused(content_type, body):
    with contextlib.suppress(HTTPException):
        parse(content_type, body)


@given(
    content=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["QQ==", "data:;base64,"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["image", "images", ""]), inner),
    )
)
def test_any_json_is_parsed_or_refused(content):
    with contextlib.suppress(HTTPException):
        parse(JSON, json.dumps(content).encode())


# The memory that open files take


def native_query(*pictures: bytes, **limits: int) -> native.NativeQuery:
    texts = [base64.b64encode(data).decode() for data in pictures]
    return native.NativeQuery(
        content_type=JSON,
        body=json.dumps({"images": texts}).encode(),
        top_k=1,
        heatmap=False,
        limits=Settings(**limits),
    )


class Costs(list):
    """A request that notes what it costs."""

    def is_wanted(self) -> bool:
        return True

    def check_cost(self, cost: Cost) -> None:
        self.append(cost)


def test_files_that_are_open_count(model_path):
    loaded = model.load(model_path, max_batch=1, threads=1)
    small, large = encode((250, 0, 0)), encode((250, 0, 0)) + bytes(500_000)
    costs = Costs()
    native_query(small).decode(loaded, costs)
    native_query(large, large).decode(loaded, costs)
    assert costs[1].bytes - costs[0].bytes == pytest.approx(3_000_000, abs=1000)
    native_query(large, large, max_decode_bytes=1_200_000).decode(loaded, costs)
    assert costs[2].bytes == 1_200_000


# The memory that JSON takes


@pytest.mark.parametrize(
    "item",
    [
        b"[]",
        b"{}",
        b"[0]",
        b"[0.5]",
        b"[[],[[]]]",
        b'{"":0}',
        b'{"":[]}',
        b'{"a":{}}',
        b"0",
        b"999",
        b"0.5",
        b"18446744073709551615",
        b'""',
        b'"a"',
        '"é"'.encode(),
        '"\N{GRINNING FACE}"'.encode(),
        b'{"a":"b","c":"d"}',
        b"[0.5,0.5,0.5]",
        b"[" * 900 + b"]" * 900,
        b'{"a":' * 900 + b"0" + b"}" * 900,
    ],
)
def test_parsed_json_takes_no_more_memory_than_its_cost(item):
    body = b'{"a":[' + b",".join([item] * (1 + 100_000 // len(item))) + b"]}"
    taken = taken_by(lambda: parse_object(body, ""))
    assert taken <= cost_of(body).bytes <= 20 * taken


def test_the_keys_of_parsed_json_take_no_more_memory_than_its_cost():
    body = b"{" + b",".join(b'"%x":"a"' % i for i in range(45_000)) + b"}"
    assert taken_by(lambda: parse_object(body, "")) <= cost_of(body).bytes


def taken_by(make: Callable[[], object]) -> int:
    """Returns the bytes that a new object takes."""
    tracemalloc.start()
    try:
        made = make()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        del made


def test_json_of_very_many_values_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr("orjson.loads", None)
    for values in (b"[]", b"{}", b"0", b'""'):
        body = b'{"image":"QQ==","a":[' + b",".join([values] * 11_000) + b"]}"
        assert refusal(JSON, body) == (
            413,
            "The JSON text has too many values for picture files: send at most 10000.",
        )
    assert refusal(JSON, b'{"image":"QQ==","a":' + b"[" * 11_000)[0] == 413


@pytest.mark.parametrize(
    "wide", ["\N{GRINNING FACE}".encode(), b"\\ud83d\\uDE00", b"\\uDBFF\\udfff", "\U0010ffff".encode()]
)
def test_a_long_text_with_characters_of_four_bytes_is_refused_before_it_is_parsed(monkeypatch, wide):
    body = b'{"image":"QQ==","a":"' + wide + b'"' + b" " * (8_000_000 - 23 - len(wide)) + b"}"
    assert len(body) == 8_000_000
    assert parse(JSON, body).pictures == [b"A"]
    others = "\N{CYRILLIC SMALL LETTER A}\\n\\u00e9\\ue000\uffff".encode()
    assert parse(JSON, b" " + body.replace(wide, others)).pictures == [b"A"]
    monkeypatch.setattr("orjson.loads", None)
    assert refusal(JSON, b" " + body) == (
        413,
        "The JSON text has more than 8000000 bytes and characters such as emoji, which take four times as much: leave"
        " them out.",
    )


def test_json_of_some_values_is_parsed():
    body = b'{"image":"QQ==","a":[' + b",".join([b"0"] * 9000) + b"]}"
    assert parse(JSON, body).pictures == [b"A"]


def test_the_text_is_not_kept_while_pictures_are_decoded(model_path):
    loaded = model.load(model_path, max_batch=1, threads=1)
    text = {"images": [base64.b64encode(encode((250, 0, 0))).decode()], "note": "a" * 5_000_000}
    body = gzip.compress(json.dumps(text).encode())
    query = native.NativeQuery(content_type=JSON, body=body, encoding="gzip", top_k=1, heatmap=False, limits=Settings())
    kept = []
    work = SimpleNamespace(is_wanted=lambda: True, check_cost=lambda _: kept.append(tracemalloc.get_traced_memory()[0]))
    tracemalloc.start()
    try:
        query.decode(loaded, work)
    finally:
        tracemalloc.stop()
    assert kept[0] < 500_000


@pytest.mark.parametrize(("encoding", "size"), [("identity", 1000), ("gzip", 1_032_000), ("deflate", 1_032_000)])
def test_a_compressed_body_is_as_large_as_it_may_become(encoding, size):
    body, limits = bytes(996) + b"\xff" * 4, Settings()
    query = native.NativeQuery(content_type=JSON, body=body, encoding=encoding, top_k=1, heatmap=False, limits=limits)
    assert query.size == InferQuery(body=body, encoding=encoding, json_size=None, limits=limits).size == size
    small = Settings(max_body_bytes=5000)
    assert InferQuery(body=body, encoding=encoding, json_size=None, limits=small).size == min(size, 5000)
    assert len(zlib.compress(bytes(1_032_000 * 10), 9)) >= 10_000


@given(content=st.binary(max_size=2000) | st.integers(0, 3000).map(bytes), level=st.integers(0, 9))
def test_a_gzip_body_is_as_large_as_it_says_and_as_it_is(content, level):
    body = gzip.compress(content, level)
    assert largest_size(body, "gzip", max_bytes=2500) == min(len(content), 2500)
    if len(content) <= 2500:
        assert decompress(body, "gzip", max_bytes=2500) == content


@pytest.mark.parametrize("claimed", [0, 1, 999, 1001, 100_000, 2**32 - 1])
def test_a_gzip_body_that_says_another_size_is_refused_and_not_decompressed_further(claimed):
    body = gzip.compress(bytes(1_000_000))[:-4] + claimed.to_bytes(4, "little")
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException) as caught:
            decompress(body, "gzip", max_bytes=2_000_000)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (caught.value.status_code, caught.value.detail[:41]) == (400, "The body is not one complete gzip stream:")
    assert taken < max(100_000, 3 * claimed)
