"""Predictions for pictures of any kind: the same from a workdir and its ONNX file, and as evaluation computes them."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from pictures import encode, make_picture, write_class_folders
from PIL import ExifTags, Image
from scipy.special import softmax

import export
from jaxcnn import data
from jaxcnn.classifier import Classifier, load
from jaxcnn.config import Config, DataConfig, ModelConfig
from jaxcnn.data.decoding import MAX_PIXELS
from jaxcnn.errors import UserError
from jaxcnn.evaluation import evaluate
from jaxcnn.models import registry
from jaxcnn.optim import make_optimizer
from jaxcnn.run.checkpoint import open_checkpoints
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state

NAMES = ("ant", "bee", "cow")
SIDE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three classes, larger than the model's input."""
    return write_class_folders(tmp_path_factory.mktemp("pictures"), NAMES, count=30, size=20)


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A run whose best checkpoint is a network of noise."""
    path = tmp_path_factory.mktemp("run")
    source = DataConfig(source=str(folder), image_size=SIDE, cache_dir=str(tmp_path_factory.mktemp("cache")))
    config = Config(data=source, model=ModelConfig(widths=(4,), blocks=(1,)), batch_size=8)
    Workdir(path).record(config, Classes(NAMES, (), "pictures", ""))
    network, optimizer = registry.build(config.model, classes=3), make_optimizer(config.optim, steps=10)
    state = create_state(jax.random.key(0), model=network, optimizer=optimizer, image_size=SIDE, averaged=False)
    random = np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.3, leaf.shape).astype(np.float32), state.variables)
    with open_checkpoints(Workdir(path).checkpoints) as checkpoints:
        checkpoints.save(state._replace(variables=noise), metrics={"top1": 0.5})
    return path


@pytest.fixture(scope="module")
def file(workdir):
    return export.export_workdir(workdir)


@pytest.fixture(scope="module", params=["workdir", "file"])
def classifier(request):
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(folder.rglob("*.png"))


def brightest(images):
    """Logits that are the means of the colours, of a model that classifies pictures by colour."""
    return images.mean(axis=(1, 2)).astype(np.float32) / 16


def make_classifier(logits=brightest, side=4):
    """A classifier of three colours without a file."""
    return Classifier(
        path=Path("colours.onnx"),
        config=Config(data=DataConfig(image_size=max(side, 8))),
        names=("red", "green", "blue"),
        wnids=(),
        step=None,
        pictures=None,
        temperature=1.0,
        logits=logits,
    )


def test_a_workdir_and_its_file_predict_the_same(workdir, file, paths):
    found, exported = load(workdir).predict(paths), load(file).predict(paths)
    assert len(found) == len(exported) == 90
    assert len({prediction.name for prediction in found}) > 1
    for one, other in zip(found, exported, strict=True):
        assert [entry.name for entry in one.top] == [entry.name for entry in other.top]
        np.testing.assert_allclose(
            [entry.probability for entry in one.top], [entry.probability for entry in other.top], atol=1e-5
        )


def test_predictions_are_those_of_evaluation(classifier, folder):
    evaluation = evaluate(classifier, split="all")
    dataset = data.load(dataclasses.replace(classifier.config.data, validation_fraction=None), hold_out=False)
    by_label = [path for name in NAMES for path in sorted((folder / name).iterdir())]
    found = classifier.predict(by_label)
    # The data set has its pictures in an order of its own: compare what was counted.
    assert len(dataset.train) == evaluation.count == len(found)
    confusion = np.zeros((3, 3), int)
    for path, prediction in zip(by_label, found, strict=True):
        confusion[NAMES.index(path.parent.name), prediction.index] += 1
    np.testing.assert_array_equal(confusion, evaluation.confusion)
    assert np.mean([prediction.probability for prediction in found]) == pytest.approx(evaluation.confidence.mean())
    logits = np.asarray(classifier.logits(dataset.train.images[:8]))
    expected = softmax(logits.astype(float), axis=1)
    rows = [sorted(prediction.top, key=lambda entry: entry.index) for prediction in found]
    probabilities = np.array([[entry.probability for entry in row] for row in rows])
    differences = np.abs(probabilities[:, None] - expected[None]).max(axis=2)
    assert (differences.min(axis=0) < 1e-4).all()


def test_a_prediction_ranks_the_classes(classifier, paths):
    prediction = classifier.predict(paths[0])
    assert sorted(entry.index for entry in prediction.top) == [0, 1, 2]
    assert all(NAMES[entry.index] == entry.name for entry in prediction.top)
    probabilities = [entry.probability for entry in prediction.top]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    best = prediction.top[0]
    assert (prediction.name, prediction.index, prediction.probability) == (best.name, best.index, best.probability)
    assert classifier.predict(paths[0], top_k=2).top == prediction.top[:2]
    assert classifier.predict(paths[0], top_k=99) == prediction


def test_a_picture_is_one_whatever_holds_it(classifier, paths):
    path = paths[40]
    expected = classifier.predict(path)
    with Image.open(path) as image:
        pixels = np.asarray(image)
        for picture in (str(path), image, image.copy(), pixels):
            assert classifier.predict(picture) == expected


def test_many_pictures_come_as_a_list_an_iterator_or_an_array(classifier, paths):
    expected = classifier.predict(paths[:5])
    assert classifier.predict(iter(paths[:5])) == expected
    assert classifier.predict(tuple(paths[:5])) == expected
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths[:5]])
    assert classifier.predict(arrays) == expected
    assert classifier.predict([paths[0], str(paths[1]), arrays[2], Image.fromarray(arrays[3]), paths[4]]) == expected
    assert classifier.predict([]) == []
    (only,) = classifier.predict(paths[:1])
    np.testing.assert_allclose(only.probability, expected[0].probability, rtol=1e-5)


def test_the_number_of_pictures_changes_no_prediction(classifier, paths):
    expected = classifier.predict(paths)
    for count in (1, 2, 3, 63, 64, 65):
        for one, other in zip(classifier.predict(paths[:count]), expected[:count], strict=True):
            assert one.index == other.index
            assert one.probability == pytest.approx(other.probability, rel=1e-4)


def test_pictures_are_read_batch_by_batch(paths):
    sizes, read = [], []

    def logits(images):
        sizes.append((len(images), len(read)))
        return brightest(images)

    def pictures():
        for path in paths:
            read.append(path)
            yield path

    assert len(make_classifier(logits).predict(pictures())) == 90
    assert sizes == [(64, 64), (32, 90)]


def test_pictures_are_prepared_as_in_training():
    tall = np.zeros((40, 20, 3), np.uint8)
    tall[:20] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    encoded = encode(Image.fromarray(tall), "PNG", exif=exif)
    seen = []
    classifier = make_classifier(lambda images: seen.append(images.copy()) or brightest(images), side=8)
    classifier.predict(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(seen[-1][0], data.decoding.decode(encoded, size=8, where=""))
    assert (seen[-1][0, :, 0] < 9).all()  # what was the lower end is on the left now
    assert (seen[-1][0, :, -1] > 246).all()
    transparent = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    classifier.predict([transparent, Image.new("L", (30, 9), 7)])
    assert (seen[-1][0] == 255).all()
    assert (seen[-1][1] == 7).all()


def test_equal_probabilities_rank_by_index():
    found = make_classifier(lambda images: np.zeros((len(images), 3), np.float32)).predict(
        np.zeros((9, 9, 3), np.uint8)
    )
    assert [entry.name for entry in found.top] == ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("no/such.jpg", r"^no/such\.jpg cannot be read: No such file or directory; give the path of a picture$"),
        (Path("~nosuchuser/a.jpg"), r"^~nosuchuser/a\.jpg cannot be read: .*; give the path of a picture$"),
        ("a\0b", "cannot be read: .*null.*; give the path of a picture$"),
        (np.zeros((4, 4, 3)), r"^picture 0 is an array of float64 \[4, 4, 3\]; give uint8 \[height, width, 3\], RGB$"),
        (np.zeros((4, 4), np.uint8), r"^picture 0 is an array of uint8 \[4, 4\]; give"),
        (np.zeros((0, 4, 3), np.uint8), r"^picture 0 is an array of uint8 \[0, 4, 3\]; give"),
        (Image.new("F", (4, 4)), "^picture 0 is no.* picture that can be read .32 bits for each pixel"),
        (3, "^pictures is of type int; give paths, Pillow pictures or uint8 arrays$"),
        (
            [np.zeros((4, 4, 3), np.uint8), 3],
            "^picture 1 is of type int; give a path, a Pillow picture or a uint8 array$",
        ),
    ],
)
def test_what_is_not_a_picture_is_named(picture, message):
    with pytest.raises(UserError, match=message) as caught:
        make_classifier().predict(picture)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(make_picture(0, seed=0))[:100])
    with pytest.raises(UserError, match=r"a\.png is no.* picture that can be read"):
        make_classifier().predict([path])
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: Is a directory; give the path of a picture"):
        make_classifier().predict(tmp_path)
    path.write_bytes(encode(make_picture(0, seed=0)))
    image = Image.open(path)
    image.close()
    with pytest.raises(UserError, match=r"picture 0 is no.* picture that can be read"):
        make_classifier().predict([image])
    with pytest.raises(UserError, match=f"picture 0 has more than {MAX_PIXELS:,} pixels"):
        make_classifier().predict(Image.new("1", (10_000, 8001)))


def test_outputs_that_are_not_finite_name_the_picture():
    def logits(images):
        return np.where(images[:, :1, 0, 0] == 9, np.float32(np.nan), brightest(images))

    pictures = np.zeros((70, 8, 8, 3), np.uint8)
    pictures[66] = 9
    with pytest.raises(UserError, match="outputs for picture 66 are not finite numbers; it has diverged"):
        make_classifier(logits).predict(pictures)


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_class_at_all_is_refused(top_k):
    with pytest.raises(UserError, match=f"top_k is {top_k}; it must be at least 1"):
        make_classifier().predict("a.jpg", top_k=top_k)
