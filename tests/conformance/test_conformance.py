"""The conformance suite: what counts as a failure, and, as a slow test, that no runtime fails."""

import json

import pytest

from tests.conformance import __main__ as conformance
from tests.conformance import networks, peers

PEER = peers.Peer("a runtime", "onnxruntime_.py", ())
FACTS = {"name": "net", "logits": [[3.0, -1.0], [0.5, 2.0]]}


@pytest.mark.parametrize(
    ("logits", "outcome"),
    [
        ([[3.0, -1.0], [0.5, 2.0]], "0e+00"),
        ([[3.0015, -1.0], [0.5, 2.0]], "5e-04"),
        ([[3.006, -1.0], [0.5, 2.0]], "differs: 2e-03, top-1 True"),
        ([[3.0, -1.0], [2.0, 0.5]], "differs: 5e-01, top-1 False"),
        ([[3.0, -1.0]], r"differs: (1, 2)"),
    ],
)
def test_differences_are_relative_to_the_largest_logit(logits, outcome):
    assert conformance.judge(PEER, FACTS, {"logits": logits}) == outcome


def test_a_runtime_without_an_answer_refused(capsys):
    assert conformance.judge(PEER, FACTS, {"error": "no answer"}) == "refused"
    assert "a runtime: net: no answer" in capsys.readouterr().err


def test_an_environment_is_made_once_and_again_after_a_failure(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(peers, "_install_python", lambda peer, folder: made.append(folder))
    first = peers.command(PEER, tmp_path)
    assert peers.command(PEER, tmp_path) == first
    assert len(made) == 1
    (made[0] / ".finished").unlink()
    peers.command(PEER, tmp_path)
    assert len(made) == 2


def test_a_runtime_without_an_interpreter_is_skipped(tmp_path, capsys):
    peer = peers.Peer("old", "onnxruntime_.py", ("no-such-package",), ("python0.1",))
    assert conformance.outcomes(peer, tmp_path, tmp_path, {"00": FACTS}) == {"00": "skipped"}
    assert "old: skipped, python0.1 is not installed" in capsys.readouterr().err


def test_a_suite_without_any_runtime_fails(tmp_path, monkeypatch, capsys):
    def write(folder):
        (folder / "00.json").write_text(json.dumps(FACTS))
        return ["00"]

    monkeypatch.setattr(networks, "write", write)
    monkeypatch.setattr(peers, "PEERS", (peers.Peer("old", "onnxruntime_.py", ("no-such-package",), ("python0.1",)),))
    assert conformance.main(["--cache", str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        conformance.main(["--only", "new"])
    assert "no runtime has 'new' in its name; there are: old" in capsys.readouterr().err


def test_every_network_is_included():
    names = networks.configurations()
    assert {config.name for config in names.values()} == set(networks.registry.NAMES)
    assert {config.precision for config in names.values()} == {"float32"}
    assert all(peer.packages for peer in peers.PEERS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_runtime_agrees(capsys):
    with capsys.disabled():
        assert conformance.main([]) == 0
