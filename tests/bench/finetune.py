"""Compares the classifier of `finetune` with a linear probe and nearest neighbours: `python -m tests.bench.finetune`.

All three take features of EfficientNet-Lite0 at 224 pixels, computed once for each set by onnxruntime. The probe and
the neighbours see the last layer's features, `finetune` the features of earlier blocks too. The probe is scikit-learn's
logistic regression on standardised features, its C chosen by cross-validation on accuracy. Each seed draws other
training pictures; all pictures that are left are measured on. `tests/bench/picture_sets.py` says for each set what to
install, and under which licence.

`--results FILE` keeps the accuracies of the sets that are done, so that a table can be made in several calls. Those
with another `--train` or `--seeds` are kept apart.
`--scratch` also trains the preset `folder` on the first draw, which takes minutes for each set.
"""

import argparse
import dataclasses
import functools
import json
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
from PIL import Image

import export
from jaxcnn.linear_head import fit_head
from jaxcnn.models import registry
from jaxcnn.models.features import group_widths, pooled_features
from jaxcnn.weights import read_weights
from tests.bench.picture_sets import CHOSEN_ON, SETS, to_squares

NETWORK, SIDE, BATCH = "efficientnet_lite0", 224, 32
POOL, LARGEST_SHARE = 600, 2 / 3
"""Most pictures of a set, and the largest share of a class to train on."""
PROBE_CS = 10.0 ** np.arange(-4, 1.1, 0.5)
METHODS = ("nearest", "probe", "finetune")


type Result = dict[str, list[float]]
"""Top-1 accuracy of each method with each draw of the training pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = "\n".join(f"  {name}: {source.__doc__}" for name, source in SETS.items())
    parser.epilog = f"sets:\n{names}"
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5, help="number of draws of the training pictures")
    parser.add_argument("--train", type=int, default=200, help="training pictures of a set, as many of each class")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where Debian's packages are")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the features")
    parser.add_argument("--results", type=Path, help="JSON file of the sets that are done, all of which the table has")
    parser.add_argument("--scratch", action="store_true", help="train the preset `folder` on the first draw, too")
    arguments = parser.parse_args()
    stored = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    # Accuracies after training on other pictures belong in another table.
    results = stored.setdefault(f"--train {arguments.train} --seeds {arguments.seeds}", {})
    for name in arguments.sets:
        result = results.setdefault(name, {})
        if "finetune" not in result:
            features, labels, groups = load_features(name, arguments.root, arguments.cache)
            runs = [
                compare(features, labels, groups, train=arguments.train, seed=seed) for seed in range(arguments.seeds)
            ]
            result |= {method: [run[method] for run in runs] for method in METHODS}
        if arguments.scratch and "folder" not in result:
            result["folder"] = [train_from_scratch(name, arguments.root, train=arguments.train)]
        if arguments.results:
            arguments.results.write_text(json.dumps(stored))
    print(describe(results))
    print(json.dumps(results))


def load_features(name: str, root: Path, cache: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Features of the pictures, [n, features], the classes, and the widths of the groups of features."""
    path = cache / f"{name}.npz"
    if not path.exists():
        images, labels = load_pictures(name, root)
        cache.mkdir(parents=True, exist_ok=True)
        features, groups = extract(images)
        np.savez(path, features=features, labels=labels, groups=groups)
    stored = np.load(path)
    return stored["features"], stored["labels"], stored["groups"].tolist()


def load_pictures(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a set, uint8 [n, side, side, 3], at most `POOL`, and their classes."""
    found = SETS[name](root)
    kept = {kind: _draw(members, POOL // len(found)) for kind, members in found.items()}
    images = np.concatenate([to_squares(members, SIDE) for members in kept.values()])
    return images, np.repeat(np.arange(len(kept)), [len(members) for members in kept.values()]).astype(np.int32)


def _draw(members: list[Any], count: int) -> list[Any]:
    return [members[index] for index in np.random.default_rng(0).permutation(len(members))[:count]]


def extract(images: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    session, groups = open_backbone()
    batches = (np.ascontiguousarray(images[start : start + BATCH]) for start in range(0, len(images), BATCH))
    return np.concatenate([session.run(None, {"image": batch})[0] for batch in batches]), groups


@functools.cache
def open_backbone() -> tuple[onnxruntime.InferenceSession, tuple[int, ...]]:
    """The pretrained network without its head, exported, and the widths of the groups of its features."""
    weights = read_weights(NETWORK)
    network = registry.build(dataclasses.replace(weights.model, pooling="all"), classes=1)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.uint8), train=False)
    )
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables = weights.fill(empty, with_head=False)
    exported = export.to_onnx(
        lambda image: {"features": pooled_features(network, variables, image)},
        inputs={"image": ("uint8", ("batch", SIDE, SIDE, 3))},
    )
    groups = group_widths(network, variables, np.zeros((1, SIDE, SIDE, 3), np.uint8))
    return onnxruntime.InferenceSession(exported.SerializeToString()), groups


def compare(features: np.ndarray, labels: np.ndarray, groups: list[int], *, train: int, seed: int) -> dict[str, float]:
    """Top-1 accuracy of each method on the pictures that are not trained on."""
    rows = draw_training(labels, train, seed)
    rest = np.setdiff1d(np.arange(len(labels)), rows)
    head = fit_head(features[rows], labels[rows], classes=int(labels.max()) + 1, groups=groups)
    last = features[:, : groups[0]]
    predicted = {
        "nearest": nearest(last[rows], labels[rows], last[rest]),
        "probe": probe(last[rows], labels[rows], last[rest]),
        "finetune": (features[rest] @ head.kernel + head.bias).argmax(1),
    }
    return {method: float((found == labels[rest]).mean()) for method, found in predicted.items()}


def draw_training(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """As many pictures of each class, but no more than `LARGEST_SHARE` of it."""
    random, classes = np.random.default_rng(seed), np.unique(labels)
    drawn = []
    for kind in classes:
        members = random.permutation(np.flatnonzero(labels == kind))
        drawn.append(members[: min(count // len(classes), int(len(members) * LARGEST_SHARE))])
    return np.sort(np.concatenate(drawn))


def nearest(rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The class of the training picture with the most similar features, by cosine."""
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (rows, queries)]
    return labels[(units[1] @ units[0].T).argmax(1)]


def probe(rows: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """scikit-learn's logistic regression, as users write it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    folds = max(2, min(5, int(np.bincount(labels).min())))
    search = GridSearchCV(pipeline, {"logisticregression__C": PROBE_CS}, cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return search.fit(rows, labels).predict(queries)


def train_from_scratch(name: str, root: Path, *, train: int) -> float:
    """Top-1 accuracy of the preset `folder` with the first draw of the training pictures."""
    images, labels = load_pictures(name, root)
    rows = draw_training(labels, train, 0)
    with tempfile.TemporaryDirectory() as scratch:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = Path(scratch, "pictures", "train" if row in rows else "val", f"class_{label:02}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{row}.png")
        workdir = Path(scratch, "run")
        command = [sys.executable, "-m", "jaxcnn.train", "folder", "--data.source", f"{scratch}/pictures"]
        # The draw may have pictures that are equal.
        subprocess.run([*command, "--data.allow_leaks", "--workdir", str(workdir)], check=True)
        return float(json.loads((workdir / "evaluation.json").read_text())["top1"])


def describe(results: dict[str, Result]) -> str:
    """A table in Markdown: mean and 95% confidence interval of each method, and of the gain over the probe.

    The intervals are of Student's t over the draws of the training pictures. The last rows are the means of the sets
    that the defaults were chosen on, and of the others.
    """
    lines = ["| set | nearest neighbour | linear probe | `finetune` | gain | `folder`, one draw |", "|---" * 6 + "|"]
    lines += [_row(f"`{name}`", results[name]) for name in SETS if name in results]
    for title, chosen in (("mean of those chosen on", True), ("mean of the others", False)):
        kept = [result for name, result in results.items() if (name in CHOSEN_ON) == chosen]
        if kept:
            lines.append(_row(title, {method: _means([result[method] for result in kept]) for method in METHODS}))
    return "\n".join(lines)


def _row(title: str, result: Result) -> str:
    gain = [fitted - probed for fitted, probed in zip(result["finetune"], result["probe"], strict=True)]
    scratch = f"{result['folder'][0]:.3f}" if "folder" in result else ""
    cells = [*(_interval(result[method]) for method in METHODS), _interval(gain, sign="+")]
    return f"| {title} | {' | '.join(cells)} | {scratch} |"


def _means(values: list[list[float]]) -> list[float]:
    """The mean over the sets for each draw."""
    return [float(np.mean(draws)) for draws in zip(*values, strict=True)]


def _interval(values: list[float], *, sign: str = "") -> str:
    """The mean with the 95% interval of Student's t."""
    from scipy.stats import t

    margin = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0
    return f"{np.mean(values):{sign}.3f} ± {margin:.3f}"


if __name__ == "__main__":
    main()
