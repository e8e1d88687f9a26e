"""The benchmark of the server: how it chooses the settings of the peers."""

import dataclasses
import json

from tests.bench import serve
from tests.bench.peer_model import Setting, read_setting
from tests.bench.serve_peers import Server


def test_peers_are_compared_with_their_best_setting(monkeypatch, tmp_path):
    slow, fast = Setting(workers=2, threads=2), Setting(workers=2, threads=1, batch=4, wait_ms=5)
    servers = {"jaxcnn": Server(["ours"]), "peer": Server(["peer"], (slow, fast))}
    rates = {None: (90, 90, 90), slow: (50, 50, 50), fast: (40, 70, 60)}
    measured = []

    def measure(name, server, setting, model, seconds):
        measured.append((name, setting, seconds))
        cells = {
            f"json {clients}": {"per_second": rate, "p50_ms": 1, "p99_ms": 2, "cpu": 2}
            for clients, rate in zip((1, 8, 64), rates[setting], strict=True)
        }
        return {"cells": cells, "ready_s": 1, "rss_mb": 100}

    monkeypatch.setattr(serve, "find_servers", lambda model, peers: servers)
    monkeypatch.setattr(serve, "bare", lambda model, seconds: {"2 threads": 100})
    monkeypatch.setattr(serve, "measure", measure)
    result = serve.compare(tmp_path, "python", rounds=2, seconds=3)["servers"]
    rounds = [("jaxcnn", None, 3), ("peer", fast, 3), ("peer", fast, 3), ("jaxcnn", None, 3)]
    assert measured == [("peer", slow, 1), ("peer", fast, 1), *rounds]
    assert result["peer"]["cells"]["json 8"]["per_second"] == 70
    assert result["peer"]["setting"] == "workers: 2, threads: 1, batches of 4 in 5 ms"
    assert result["jaxcnn"]["setting"] == "defaults"


def test_a_peer_reads_its_setting(monkeypatch):
    setting = Setting(workers=1, threads=2, batch=8)
    monkeypatch.setenv("PEER_SETTING", json.dumps(dataclasses.asdict(setting)))
    assert read_setting() == setting
    assert str(setting) == "workers: 1, threads: 2, batches of 8"
