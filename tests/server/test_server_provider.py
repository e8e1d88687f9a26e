"""Execution providers: those that are installed, and those that onnxruntime leaves out without an error."""

import pytest

from server import model, provider, settings
from server.errors import StartError


@pytest.fixture
def installed(monkeypatch):
    """Sets the providers that the installed onnxruntime has."""

    def install(*names):
        installed = [provider.PROVIDERS[name][0] for name in names]
        monkeypatch.setattr(provider.ort, "get_available_providers", lambda: installed)

    return install


def read(name):
    return settings.from_environment({"JAXCNN_EXECUTION_PROVIDER": name}).execution_provider


def test_installed_ones_can_be_chosen(installed):
    installed("cuda", "cpu")
    assert (read("cpu"), read("cuda"), read("")) == ("cpu", "cuda", "cpu")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("openvino", "onnxruntime-openvino"),
        ("tensorrt", "onnxruntime-gpu"),
        ("coreml", "onnxruntime on macOS"),
    ],
)
def test_others_are_refused_with_what_is_installed_and_what_brings_them(installed, name, package):
    installed("cuda", "cpu")
    with pytest.raises(StartError) as caught:
        read(name)
    assert str(caught.value) == (
        f"JAXCNN_EXECUTION_PROVIDER is {name!r}, but the installed onnxruntime has only cpu, cuda: install the package"
        f" {package} in its place, or set it to one of those."
    )


@pytest.mark.parametrize("name", ["CPU", "gpu", "CUDAExecutionProvider", "cpu,cuda"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(StartError, match=r"is '.*': set it to cpu, openvino, cuda, tensorrt, coreml, or unset it\."):
        read(name)


def test_a_provider_that_does_not_work_here_is_not_replaced_by_the_cpu(model_path, monkeypatch):
    monkeypatch.setattr(provider, "arguments", lambda name, threads: ["CPUExecutionProvider"])
    with pytest.raises(
        StartError, match=r"^JAXCNN_EXECUTION_PROVIDER is 'cuda', but onnxruntime cannot use it on this"
    ):
        model.load(model_path, max_batch=1, threads=1, execution_provider="cuda")


def test_the_cpu_does_what_the_provider_cannot():
    assert provider.arguments("cpu", 2) == ["CPUExecutionProvider"]
    assert provider.arguments("cuda", 2) == [("CUDAExecutionProvider", {}), "CPUExecutionProvider"]
    assert provider.arguments("openvino", 2)[0] == ("OpenVINOExecutionProvider", {"num_of_threads": "2"})
