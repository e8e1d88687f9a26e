"""Runs to export whose best checkpoint is a network of noise, with their data, evaluation, card and metadata."""

import json
from functools import partial

import jax
import numpy as np
import onnx

import export
from jaxcnn.calibration import Calibration
from jaxcnn.classifier import load
from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig
from jaxcnn.data import Dataset, Split
from jaxcnn.evaluation import measure, with_mirror_image
from jaxcnn.evaluation_record import describe_measured, write_evaluation
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.run.checkpoint import load_model, open_checkpoints
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state

PICTURES = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), np.uint8)
"""They stand for real pictures."""
CLASSES = Classes(("cat", "dög", "eel"), ("n01", "n02", "n03"), "pets", "CC-BY-4.0")
CALIBRATION = Calibration(step=7, temperature=1.625, count=200, ece_before=0.375, ece_after=0.1875)


def make_run(path, *, flip=False, **model):
    """Writes a workdir with settings, classes and one checkpoint of 7 steps; returns its path."""
    config = Config(
        data=DataConfig(image_size=8, cache_dir="/home/me/cache"),
        model=ModelConfig(widths=(4, 6), blocks=(1, 0), **model),
        augment=AugmentConfig(flip=flip),
    )
    Workdir(path).record(config, CLASSES)
    state = create_state(
        jax.random.key(0),
        model=registry.build(config.model, classes=3),
        optimizer=make_optimizer(config.optim, steps=10),
        image_size=8,
        averaged=False,
    )
    random = np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.2, leaf.shape).astype(np.float32), state.variables)
    with open_checkpoints(path / "checkpoints") as checkpoints:
        checkpoints.save(state._replace(step=state.step + 7, variables=noise), metrics={"top1": 0.5, "loss": 1.25})
    return path


def dataset_of(run, *, train=64, validation=200):
    """Returns pictures labelled as the model itself classifies them."""
    trained = load_model(run)
    compute = jax.jit(partial(trained.model.apply, train=False))
    random = np.random.default_rng(1)

    def split(count):
        images = random.integers(0, 256, (count, 8, 8, 3), np.uint8)
        logits = compute(trained.variables, images)
        return Split(images, np.asarray(logits).argmax(axis=1).astype(np.int32))

    return Dataset(
        name="pets",
        names=CLASSES.names,
        wnids=CLASSES.wnids,
        license="",
        train=split(train),
        validation=split(validation),
    )


def evaluate_run(run, *, flip=False):
    """Writes the evaluation of a run as training does at its end; returns the record."""
    classifier, dataset = load(run), dataset_of(run)
    evaluation = measure(classifier.logits, dataset.validation, classes=3, batch_size=32)
    averaged = with_mirror_image(classifier.logits)
    flipped = measure(averaged, dataset.validation, classes=3, batch_size=32) if flip else None
    about = describe_measured(classifier, dataset=dataset, split="validation")
    path = run / "evaluation.json"
    write_evaluation(evaluation, path, names=CLASSES.names, about=about, flipped=flipped)
    return json.loads(path.read_text())


def card_of(run, **options):
    """Exports a run and returns the model card."""
    return (export.export_workdir(run, **options).with_suffix("") / "README.md").read_text()


def metadata_of(path):
    """Returns the metadata of an ONNX file as JSON values by key."""
    return {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}


def find_bias(model):
    """Returns the bias of the last layer."""
    return next(weights for weights in model.graph.initializer if weights.name.endswith("classifier/bias"))
