import dataclasses
import re
from pathlib import Path

import pytest

from server import cpus, settings
from server.errors import StartError

MODEL = {"JAXCNN_MODEL": "model.onnx"}


def test_defaults_where_nothing_is_set():
    chosen = settings.from_environment(MODEL)
    assert {name: str(source) for name, source in chosen.model.items()} == {"model": "model.onnx"}
    assert (chosen.threads, chosen.max_body_bytes, chosen.max_pixels) == (cpus.available(), 10 * 2**20, 25_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 1),
        ("max_requests", 100),
        ("max_body_bytes", 1024),
        ("max_images", 7),
        ("max_pixels", 89_478_485),
        ("read_seconds", 3600),
        ("reload_seconds", 5),
        ("max_batch", 1),
        ("max_buffer_bytes", 2**40),
        ("deadline_ms", 1),
        ("min_bytes_per_second", 1),
        ("max_request_pixels", 10**9),
        ("max_decode_bytes", 2**30),
        ("drain_seconds", 0),
    ],
)
def test_each_limit_is_read_from_its_variable(name, value):
    assert getattr(settings.from_environment({**MODEL, f"JAXCNN_{name.upper()}": str(value)}), name) == value


@pytest.mark.parametrize("text", ["two", "0", "257", "-1", "1.5", " 2", "1_0", "٣", "9" * 5000])
def test_an_invalid_limit_is_reported_with_its_range(text):
    with pytest.raises(StartError, match=r"^JAXCNN_THREADS is .*an integer from 1 to 256.*$"):
        settings.from_environment({**MODEL, "JAXCNN_THREADS": text})


def test_an_empty_variable_is_an_unset_one():
    assert settings.from_environment({**MODEL, "JAXCNN_THREADS": ""}) == settings.from_environment(MODEL)


@pytest.mark.parametrize("service", ["JAXCNN", "JAXCNN_PREDICTOR", "JAXCNN_V2_MODEL"])
def test_variables_of_kubernetes_are_ignored(service):
    port = f"{service}_PORT_8080_TCP"
    address = {f"{service}_SERVICE_HOST": "10.0.0.1", f"{port}_ADDR": "10.0.0.1", f"{port}_PROTO": "tcp"}
    ports = dict.fromkeys((f"{service}_SERVICE_PORT", f"{service}_SERVICE_PORT_HTTP", f"{port}_PORT"), "8080")
    urls = dict.fromkeys((f"{service}_PORT", port), "tcp://10.0.0.1:8080")
    assert settings.from_environment(MODEL | address | ports | urls) == settings.from_environment(MODEL)


@pytest.mark.parametrize("variable", ["JAXCNN_PORTS", "JAXCNN_SERVICE", "JAXCNN_HOST", "JAXCNN_REPORT"])
def test_variables_that_only_look_like_those_of_kubernetes_are_refused(variable):
    with pytest.raises(StartError, match=f"^There is no setting {variable}: "):
        settings.from_environment({**MODEL, variable: "1"})


def test_a_missing_model_is_reported_with_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "_SHIPPED_MODEL", tmp_path / "absent.onnx")
    with pytest.raises(StartError, match=r"set JAXCNN_MODEL to a file made by `python -m export WORKDIR`"):
        settings.from_environment({})


@pytest.mark.parametrize(
    ("variable", "text", "field", "expected"),
    [
        ("JAXCNN_API_KEYS", "12345678", "api_keys", ("12345678",)),
        ("JAXCNN_API_KEYS", "first-key, second_key", "api_keys", ("first-key", "second_key")),
        ("JAXCNN_CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("JAXCNN_CORS_ORIGINS", "http://a:3,https://b", "cors_origins", ("http://a:3", "https://b")),
        ("JAXCNN_CORS_ORIGINS", "http://[::1]:443", "cors_origins", ("http://[::1]:443",)),
        ("JAXCNN_ACCESS_LOG", "off", "access_log", False),
        ("JAXCNN_PAGE", "on", "page", True),
    ],
)
def test_other_settings(variable, text, field, expected):
    assert getattr(settings.from_environment({**MODEL, variable: text}), field) == expected


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("JAXCNN_ACCESS_LOG", "false", "JAXCNN_ACCESS_LOG is 'false': set it to on or off, or unset it."),
        ("JAXCNN_CORS_ORIGINS", "example.org", "set it to origins such as https://example.org, or *"),
        ("JAXCNN_CORS_ORIGINS", "https://example.org/", "JAXCNN_CORS_ORIGINS is 'https://example.org/'"),
        ("JAXCNN_ONNXRUNTIME_WEB", "/absent", "but ort.wasm.min.mjs in that folder cannot be read"),
        ("JAXCNN_ONNXRUNTIME_WEB", "/" + "x" * 300, "(File name too long): set it to the `dist` folder"),
        ("JAXCNN_MAX_BUFFER_BYTES", "1024", "is less than JAXCNN_MAX_BODY_BYTES (10485760)"),
        ("JAXCNN_MAX_REQUEST_PIXELS", "1000", "is less than JAXCNN_MAX_PIXELS (25000000): raise the first or lower"),
        ("PROMETHEUS_MULTIPROC_DIR", "", "PROMETHEUS_MULTIPROC_DIR is '', which is not a folder that the server may"),
        ("PROMETHEUS_MULTIPROC_DIR", "/absent", "which is not a folder that the server may write to: make an empty"),
        ("JAXCNN_THREDS", "2", "There is no setting JAXCNN_THREDS: unset it, or use one of JAXCNN_MODEL, "),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(variable, text, complaint):
    with pytest.raises(StartError) as caught:
        settings.from_environment({**MODEL, variable: text})
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://*.example.org",
        "https://Example.org",
        "HTTPS://example.org",
        "https://example.org:443",
        "http://example.org:80",
        "https://example.org:08443",
        "https://me@example.org",
        "https://exämple.org",
        "https://example.org, https://*",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(text):
    with pytest.raises(StartError, match=r"^JAXCNN_CORS_ORIGINS is .* in the spelling that browsers send .*\.$"):
        settings.from_environment({**MODEL, "JAXCNN_CORS_ORIGINS": text})


@pytest.mark.parametrize("text", ["short", "long-enough,", "long enough", "long-enough,short"])
def test_an_invalid_key_is_not_shown(text):
    with pytest.raises(StartError, match=r"^JAXCNN_API_KEYS is invalid: set it to keys of 8 or more visible"):
        settings.from_environment({**MODEL, "JAXCNN_API_KEYS": text})


def test_a_folder_that_may_not_be_entered_is_refused(locked):
    with pytest.raises(
        StartError, match=r"ort\.wasm\.min\.mjs in that folder cannot be read \(Permission denied\): set it to"
    ):
        settings.from_environment({**MODEL, "JAXCNN_ONNXRUNTIME_WEB": str(locked)})


def test_an_unreadable_shipped_model_is_left_to_the_loader(monkeypatch, locked):
    monkeypatch.setattr(settings, "_SHIPPED_MODEL", locked / "model.onnx")
    settings.from_environment({})


def test_every_setting_is_in_the_readme_with_its_default():
    readme = Path(settings.__file__).with_name("README.md").read_text()
    for item in dataclasses.fields(settings.Settings):
        default = "on" if item.default is True else item.default or (0 if item.default == 0 else "")
        shown = "" if item.name in ("model", "cache", "threads") else str(default)
        assert re.search(rf"^\| `JAXCNN_{item.name.upper()}` \| {shown} ?\| .", readme, re.MULTILINE), item.name
