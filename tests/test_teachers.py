"""Learning from teachers: the target, the loss, what is refused, and whole runs."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pictures import write_class_folders
from runs import CALIBRATION, CLASSES, PICTURES, dataset_of, make_run
from test_step import make_batch, setup

import export
from export.workdir import export_weights
from jaxcnn import data
from jaxcnn.augment import augment
from jaxcnn.calibration import write_calibration
from jaxcnn.classifier import load
from jaxcnn.config import AugmentConfig, Config, DataConfig, DistillConfig, ModelConfig, OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.preparation import prepare_run
from jaxcnn.run.earlier_trainings import read_earlier
from jaxcnn.run.workdir import Workdir
from jaxcnn.step import step_keys
from jaxcnn.teachers import read_teachers
from jaxcnn.training import train

KEY = jax.random.key(5)
LABELS = np.array([0, 1, 2, 1, 0], np.int32)
PLAIN = {"config": AugmentConfig(), "classes": 3, "resolution": 8, "shown": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("teacher") / "run")


def configured(*teachers: Path, **settings) -> Config:
    names = tuple(map(str, teachers))
    return Config(data=DataConfig(image_size=8), distill=DistillConfig(teachers=names, **settings))


def predictions(run, *teachers, changes=PLAIN, **settings):
    found = read_teachers(configured(*teachers, **settings), dataset_of(run))
    return np.asarray(found.predict(jnp.int32(0), PICTURES, LABELS, KEY, **changes))


@pytest.mark.run
def test_teachers_predict_as_they_do_outside_of_training(run, tmp_path):
    expected = jax.nn.softmax(load(run).logits(PICTURES) / 2)
    np.testing.assert_allclose(predictions(run, run, temperature=2.0), expected, atol=1e-6)
    export.export_workdir(run, tmp_path / "model.onnx")
    export_weights(run, tmp_path / "model.safetensors")
    # Weights in half precision are a little off; an .onnx file takes whole pixel values.
    np.testing.assert_allclose(predictions(run, tmp_path / "model.onnx", temperature=2.0), expected, atol=1e-5)
    np.testing.assert_allclose(predictions(run, tmp_path / "model.safetensors", temperature=2.0), expected, atol=2e-3)


@pytest.mark.run
def test_a_calibrated_file_teaches_as_the_run_that_it_came_from(tmp_path):
    """A file's logits are divided by the temperature of its calibration, a run's are not."""
    run = make_run(tmp_path / "run")
    write_calibration(CALIBRATION, run / "calibration.json")
    export.export_workdir(run, tmp_path / "model.onnx")
    expected = predictions(run, run, temperature=2.0)
    np.testing.assert_allclose(predictions(run, tmp_path / "model.onnx", temperature=2.0), expected, atol=1e-5)
    together = predictions(run, tmp_path / "model.onnx", run, tmp_path / "model.onnx", temperature=2.0)
    np.testing.assert_allclose(together, expected, atol=1e-5)


@pytest.mark.run
def test_several_teachers_are_averaged(run, tmp_path):
    export.export_workdir(make_run(tmp_path / "run", stem=1), tmp_path / "other.onnx")
    alone = [predictions(run, teacher) for teacher in (run, tmp_path / "other.onnx")]
    together = predictions(run, run, tmp_path / "other.onnx")
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.run
def test_teachers_see_the_pictures_as_the_step_changes_them(run):
    changes = PLAIN | {"config": AugmentConfig(mixup=1.0, flip=True), "resolution": 16}
    seen = []

    class Spy(nn.Module):
        """A network that records its pictures."""

        def apply(self, variables, pictures, *, train):
            seen.append(pictures)
            return jnp.zeros((len(pictures), 3))

    found = dataclasses.replace(
        read_teachers(configured(run), dataset_of(run)), networks=(Spy(),), variables=({},), sides=(16,)
    )
    with jax.disable_jit():
        found.predict(jnp.int32(3), jnp.asarray(PICTURES), jnp.asarray(LABELS), KEY, **changes)
        expected, _ = augment(step_keys(KEY, jnp.int32(3))[0], jnp.asarray(PICTURES), jnp.asarray(LABELS), **changes)
    np.testing.assert_allclose(seen[0], expected, atol=1e-4)


@pytest.mark.run
@pytest.mark.parametrize("crop_scale", [None, (0.5, 1.0)])
def test_random_crops_are_not_enlarged_once_more(run, tmp_path, crop_scale):
    enlarging = make_run(tmp_path / "run", inference_side=16)
    seen = [
        read_teachers(
            dataclasses.replace(configured(teacher), augment=AugmentConfig(crop_scale=crop_scale)), dataset_of(run)
        ).predict(jnp.int32(0), PICTURES, LABELS, KEY, **PLAIN)
        for teacher in (run, enlarging)
    ]
    assert np.allclose(*seen, atol=1e-6) == (crop_scale is not None)


@pytest.mark.run
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_is_shared_between_labels_and_teachers(accumulate):
    config = ModelConfig(widths=(4,), blocks=(1,), norm_group=6)
    model, state, take = setup(model_config=config)
    images, labels = make_batch()
    taught = jax.nn.softmax(jax.random.normal(KEY, (12, 3)))
    logits, _ = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(state.variables, images)
    expected = 0.75 * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    expected += 0.25 * 2.0**2 * optax.softmax_cross_entropy(logits / 2.0, taught).mean()
    how = {"distill_config": DistillConfig(weight=0.25, temperature=2.0), "accumulate": accumulate}
    _, metrics = take(state, images, labels, KEY, taught, **how)
    np.testing.assert_allclose(metrics.loss / metrics.pictures, expected, rtol=1e-4 if accumulate == 1 else 0.2)


@pytest.mark.run
def test_a_teacher_that_does_not_fit_is_refused(run, tmp_path):
    dataset = dataset_of(run)
    read = partial(read_teachers, dataset=dataset)
    with pytest.raises(UserError, match=r"names '.*missing', which does not exist; give workdirs"):
        read(configured(tmp_path / "missing"))
    other = dataclasses.replace(dataset, names=("cat", "eel", "dög"))
    for teacher in (run, tmp_path / "model.onnx"):
        export.export_workdir(run, tmp_path / "model.onnx")
        with pytest.raises(UserError, match="which has other classes than pets, or the same in another order"):
            read_teachers(configured(teacher), other)
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="neither a workdir nor a readable"):
        read(configured(tmp_path / "broken.onnx"))
    assert read(configured()) is None


@pytest.mark.run
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".onnx"])
def test_a_teacher_that_saw_the_pictures_held_out_is_refused(tmp_path, suffix):
    for split, seed in (("train", 0), ("val", 50)):
        write_class_folders(tmp_path / "pictures" / split, CLASSES.names, size=8, seed=seed)
    source = DataConfig(image_size=8, source=str(tmp_path / "pictures"), cache_dir=str(tmp_path / "cache"))
    dataset, run = data.load(source), make_run(tmp_path / "run")
    # Its training pictures are those that the student holds out.
    dataset = dataclasses.replace(dataset, wnids=CLASSES.wnids)
    swapped = dataclasses.replace(dataset, train=dataset.validation, validation=dataset.train)
    teacher = run if not suffix else tmp_path / f"model{suffix}"
    for pictures in (dataset, swapped):
        Workdir(run).record_pictures(pictures.fingerprint())
        if suffix:
            (export.export_workdir if suffix == ".onnx" else export_weights)(run, teacher)
        config = dataclasses.replace(configured(teacher), data=source)
        if pictures is dataset:
            assert read_teachers(config, dataset) is not None
    with pytest.raises(
        UserError, match=r"12 of the 12 validation pictures of pictures are pictures that the model was"
    ):
        read_teachers(config, dataset)


def test_a_missing_teacher_is_reported_before_the_pictures_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda config: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"names '.*missing', which does not exist"):
        prepare_run(configured(tmp_path / "missing"), Workdir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, r"distill.weight is 0.0; it must be above 0 and at most 1"),
        ({"weight": 1.5}, r"distill.weight is 1.5"),
        ({"temperature": 0.0}, r"distill.temperature is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, r"distill.temperature is nan"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**settings)
    with pytest.raises(UserError, match=r"distill\.teachers .* left out with freeze backbone"):
        Config(init_from="shipped", freeze="backbone", distill=DistillConfig(teachers=("runs/a",)))


def small(**settings) -> Config:
    return Config(
        data=DataConfig(image_size=8),
        model=ModelConfig(widths=(16,), blocks=(1,)),
        optim=OptimConfig(learning_rate=0.2),
        epochs=3,
        **settings,
    )


@pytest.mark.run
def test_a_student_learns_what_its_teacher_knows(tmp_path):
    train(small(), tmp_path / "teacher")
    teacher = (str(tmp_path / "teacher"), str(tmp_path / "teacher" / "model.onnx"))
    # The labels count for nothing, so that all that the student knows is its teacher's.
    # Soft targets take some epochs more.
    distill = DistillConfig(teachers=teacher, weight=1.0, temperature=2.0)
    config = dataclasses.replace(small(seed=1, distill=distill), epochs=5)
    evaluation = train(config, tmp_path / "student")
    assert evaluation.top1 > 0.85
    # The teachers are named in what is recorded and exported.
    assert len(read_earlier(tmp_path / "student" / "teachers.json")) == 2
    card = next((tmp_path / "student" / "model").glob("*.md")).read_text()
    assert "100% of the loss from the predictions of teacher and model.onnx at temperature 2" in card
    assert "| teachers |" in card
    settings = json.loads((tmp_path / "student" / "config.json").read_text())
    assert settings["distill"]["teachers"] == list(teacher)
    # The same teachers are needed to resume.
    more = dataclasses.replace(config, epochs=6, distill=DistillConfig())
    with pytest.raises(UserError, match=r"distill\.teachers"):
        train(more, tmp_path / "student")
