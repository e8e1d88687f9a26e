import pytest

from server import cpus, settings
from server.errors import StartError

MODEL = {"JAXCNN_MODEL": "model.onnx"}


def test_defaults_where_nothing_is_set():
    chosen = settings.from_environment(MODEL)
    assert str(chosen.model) == "model.onnx"
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
    ],
)
def test_each_limit_is_read_from_its_variable(name, value):
    assert getattr(settings.from_environment({**MODEL, f"JAXCNN_{name.upper()}": str(value)}), name) == value


@pytest.mark.parametrize("text", ["two", "0", "257", "-1", "1.5", " 2", "1_0", "٣", "9" * 5000])
def test_a_wrong_limit_is_named_with_its_range(text):
    with pytest.raises(StartError, match=r"^JAXCNN_THREADS is .*whole number from 1 to 256.*$"):
        settings.from_environment({**MODEL, "JAXCNN_THREADS": text})


def test_an_empty_variable_is_an_unset_one():
    assert settings.from_environment({**MODEL, "JAXCNN_THREADS": ""}).threads == 2


def test_variables_of_others_are_left_alone():
    settings.from_environment({**MODEL, "JAXCNN_PORT": "tcp://10.0.0.1:80"})


def test_no_model_at_all_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "_SHIPPED_MODEL", tmp_path / "absent.onnx")
    with pytest.raises(StartError, match=r"set JAXCNN_MODEL to a file made by `python -m export WORKDIR`"):
        settings.from_environment({})
