"""The benchmark of fine-tuning: its table, and how it goes on with the sets that are left."""

import json

import numpy as np

from tests.bench import finetune


def test_the_table_has_means_intervals_and_gains():
    result = {"nearest": [0.5, 0.5], "probe": [0.6, 0.8], "finetune": [0.7, 0.8]}
    lines = finetune.describe({"stamps": result, "animals": {**result, "folder": [0.25]}}).splitlines()
    # 12.706 is Student's t of .975 with one degree of freedom, .1 the standard error of the probe.
    expected = "0.500 ± 0.000 | 0.700 ± 1.271 | 0.750 ± 0.635 | +0.050 ± 0.635 |"
    assert lines[2:] == [
        f"| `stamps` | {expected}  |",
        f"| `animals` | {expected} 0.250 |",
        f"| mean of those chosen on | {expected}  |",
        f"| mean of the others | {expected}  |",
    ]
    assert all(line.count("|") == 7 for line in lines)


def test_sets_that_are_done_are_not_measured_again(tmp_path, monkeypatch, capsys):
    rows = np.random.default_rng(0).normal(0, 1, (60, 6)).astype(np.float32)
    labels = np.repeat([0, 1], 30).astype(np.int32)
    rows[labels == 1, 0] += 4
    asked = []

    def load_features(name, root, cache):
        asked.append(name)
        return rows, labels, [4, 2]

    monkeypatch.setattr(finetune, "load_features", load_features)
    command = ["finetune", "--cache", str(tmp_path), "--results", str(tmp_path / "results.json"), "--seeds", "2"]
    for sets in (["digits"], ["digits", "animals"]):
        monkeypatch.setattr("sys.argv", [*command, "--train", "20", "--sets", *sets])
        finetune.main()
    assert asked == ["digits", "animals"]
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "results.json").read_text()) == {"--train 20 --seeds 2": printed}
    assert [len(draws) for result in printed.values() for draws in result.values()] == [2] * 6
    assert np.mean(printed["animals"]["finetune"]) > 0.85


def test_results_with_other_settings_are_kept_apart(tmp_path, monkeypatch, capsys):
    def compare(features, labels, groups, *, train, seed):
        return {"nearest": 0.5, "probe": 0.5, "finetune": train / 100}

    monkeypatch.setattr(finetune, "load_features", lambda name, root, cache: ([], [], []))
    monkeypatch.setattr(finetune, "compare", compare)
    command = ["finetune", "--cache", str(tmp_path), "--results", str(tmp_path / "results.json"), "--sets", "digits"]
    for train, seeds in ((20, 2), (40, 2), (20, 3), (20, 2)):
        monkeypatch.setattr("sys.argv", [*command, "--train", str(train), "--seeds", str(seeds)])
        finetune.main()
        printed = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert printed["digits"]["finetune"] == [train / 100] * seeds


def test_draws_differ_and_leave_pictures_to_measure_on():
    labels = np.repeat([0, 1, 2], [6, 90, 90])
    first, second = (finetune.draw_training(labels, 60, seed) for seed in (0, 1))
    assert list(np.bincount(labels[first])) == [4, 20, 20]
    assert set(first) != set(second)
