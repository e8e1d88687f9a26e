"""Metadata of a file: what is written is read, and anything else is refused by its key."""

import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.calibration import Calibration
from jaxcnn.config import Config, DataConfig
from jaxcnn.data import Fingerprint, Resize
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.presets import PRESETS
from jaxcnn.run.earlier_trainings import Training

SMALL = Metadata(names=("cat", "dög"), wnids=(), image_size=(32, 32), config=Config())
REQUIRED = {"names": '["cat"]', "wnids": "[]", "image_size": "[32, 32]", "config": "{}"}

texts = st.text(max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**70)
FINGERPRINTS = st.fixed_dictionaries(
    dict.fromkeys(("train", "validation", "side", "decoder"), counts) | {"labels": texts, "pixels": texts}
)
CALIBRATIONS = st.fixed_dictionaries(
    dict.fromkeys(("temperature", "ece_before", "ece_after"), numbers) | {"step": counts, "count": counts}
)
# Fields, not objects: beartype draws random numbers as it checks objects, which strategies may not.
FIELDS = st.fixed_dictionaries(
    {
        "names": st.lists(texts).map(tuple),
        "wnids": st.lists(texts).map(tuple),
        "image_size": st.tuples(counts, counts),
        "resize": st.fixed_dictionaries(
            {
                "mode": st.sampled_from(["stretch", "crop", "pad"]),
                "filter": st.sampled_from(["bicubic", "bilinear"]),
                "side": st.none() | counts,
            }
        ),
        "dataset": texts,
        "metrics": st.dictionaries(texts, numbers),
        "step": st.none() | counts,
        "config": st.fixed_dictionaries({"epochs": st.integers(1, 10**6), "seed": st.integers(0, 2**32 - 1)}),
        "pictures": st.none() | FINGERPRINTS,
        "calibration": st.none() | CALIBRATIONS,
        "quantization": st.none() | st.dictionaries(texts, numbers | texts | counts),
        "license": texts,
        "trainings": st.lists(
            st.fixed_dictionaries({"dataset": texts, "license": texts, "recipe": st.dictionaries(texts, texts)}),
            max_size=3,
        ),
        "author": texts,
        "version": texts,
        "date": texts,
        "description": texts,
    }
)


def build(fields):
    kinds = {"resize": Resize, "config": Config, "pictures": Fingerprint, "calibration": Calibration}
    built = {key: fields[key] and kind(**fields[key]) for key, kind in kinds.items()}
    return Metadata(**(fields | built | {"trainings": tuple(Training(**record) for record in fields["trainings"])}))


@pytest.mark.run
@given(FIELDS)
def test_what_is_written_is_read(fields):
    assert Metadata.from_props(build(fields).to_props()) == build(fields)


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_of_a_preset_are_read(name):
    metadata = dataclasses.replace(SMALL, config=PRESETS[name]())
    assert Metadata.from_props(metadata.to_props()) == metadata


@given(FIELDS)
def test_every_field_is_a_key_unless_there_is_nothing_to_say(fields):
    props = build(fields).to_props()
    optional = {"step", "pictures", "calibration", "quantization"}
    assert props.keys() == {key for key in fields if key not in optional or fields[key] is not None}
    assert {key: json.loads(text) for key, text in props.items()} == json.loads(json.dumps(build(fields).to_values()))


def test_the_values_are_plain_json():
    values = {key: json.loads(text) for key, text in SMALL.to_props().items()}
    assert values["names"] == ["cat", "dög"]
    assert values["image_size"] == [32, 32]
    assert values["resize"] == {"mode": "stretch", "filter": "bicubic"}
    assert values["config"]["data"]["source"] == "digits"
    assert "step" not in values


def test_a_file_of_an_earlier_version_or_another_program_may_say_less():
    found = Metadata.from_props(REQUIRED | {"onnx.infer": "onnxruntime.quant"})
    assert found == Metadata(names=("cat",), wnids=(), image_size=(32, 32), config=Config())
    pictures = {"train": 7, "validation": 3, "labels": "ab", "pixels": "cd", "side": 8}
    found = Metadata.from_props(REQUIRED | {"pictures": json.dumps(pictures)})
    assert found.pictures == Fingerprint(**pictures, decoder=0)


def test_earlier_versions_stretched_pictures_of_any_size():
    found = Metadata.from_props(REQUIRED | {"config": '{"data": {"image_size": 224}}'})
    assert found.config.data == DataConfig(image_size=224, fit="stretch", filter="bicubic")
    assert found.resize == Resize.of(found.config.data) == Resize()
    assert Resize.of(DataConfig(image_size=224)) == Resize(mode="crop", side=256)


@pytest.mark.parametrize("key", [*REQUIRED, "trainings"])
def test_a_missing_key_is_named(key):
    props = {name: text for name, text in REQUIRED.items() if name != key}
    with pytest.raises(UserError, match=f"^metadata.{key} is missing$"):
        Metadata.from_props(props, required=("trainings",) if key == "trainings" else ())


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("names", "[" * 100_000, "metadata.names is not JSON"),
        ("names", "red, green", "metadata.names is not JSON"),
        ("names", '{"0": "cat"}', "metadata.names is {'0': 'cat'}; it must be a list"),
        ("names", '["cat", 3]', "metadata.names[1] is 3; it must be a text"),
        ("image_size", "[32]", "metadata.image_size is [32]; it must be 2 items"),
        ("config", "[]", "metadata.config is []; it must be an object"),
        ("config", '{"epochs": 0}', "epochs is 0; it must be at least 1"),
        ("config", '{"width": 3}', "there is no metadata.config.width; metadata.config has: data, model"),
        ("step", '"7"', "metadata.step is '7'; it must be a whole number"),
        ("metrics", '{"top1": "good"}', "metadata.metrics.top1 is 'good'; it must be a number"),
        ("metrics", '{"top1": NaN}', "metadata.metrics.top1 is nan; it must be a number"),
        ("calibration", '{"step": 7}', "metadata.calibration.temperature is missing"),
        ("pictures", '{"train": 7}', "metadata.pictures.validation is missing"),
        ("trainings", '[{"dataset": "pets", "license": "", "recipe": {"time": 3}}]', "recipe.time is 3; it must be"),
        ("resize", '{"mode": 3}', "metadata.resize.mode is 3; it must be one of 'stretch', 'crop', 'pad'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_key(key, text, message):
    with pytest.raises(UserError) as caught:
        Metadata.from_props(REQUIRED | {key: text})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Metadata)]), texts | JSON.map(json.dumps))
def test_any_text_is_read_or_refused(key, text):
    with suppress(UserError):  # any other error fails the test
        Metadata.from_props(REQUIRED | {key: text})
