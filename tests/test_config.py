"""Settings: presets, JSON both ways, and errors that name the field."""

import dataclasses
import json
import re
import typing

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.config import (
    MAX_SEED,
    AugmentConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    from_json,
    to_json,
)
from jaxcnn.errors import UserError
from jaxcnn.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    config = PRESETS[name]()
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_opens_with_its_command(name):
    command = "python -m jaxcnn.train" + ("" if name == "digits" else f" {name}")
    assert re.search(rf"^\s*{re.escape(command)}\b", PRESETS[name].__doc__, re.MULTILINE)


@given(
    source=st.text(),
    image_size=st.integers(8, 10**6),
    clip_norm=st.none() | st.floats(1e-30, 1e30),
    crop_scale=st.none() | st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
    resolutions=st.sampled_from([(), ((0.0, 48),), ((0.0, 32), (0.5, 48))]),
)
def test_any_settings_survive_json(source, image_size, clip_norm, crop_scale, resolutions):
    config = Config(
        data=DataConfig(source=source, image_size=image_size),
        optim=OptimConfig(clip_norm=clip_norm),
        augment=AugmentConfig(crop_scale=crop_scale),
        resolutions=resolutions,
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["optim", "lr"], 1.0, "there is no config.optim.lr; config.optim has: name, learning_rate, schedule"),
        (["optim", "name"], "adagrad", "config.optim.name is 'adagrad'; it must be one of 'sgd', 'adam'"),
        (["epochs"], "3", "config.epochs is '3'; it must be a whole number"),
        (["epochs"], True, "config.epochs is True; it must be a whole number"),
        (["epochs"], 0, "epochs is 0; it must be at least 1"),
        (["model", "widths"], [1, "x", 3], r"config.model.widths\[1\] is 'x'; it must be a whole number"),
        (["model", "blocks"], [1], "model.blocks is .* one number for each of the 3 widths"),
        (["augment", "crop_scale"], [0.5], r"config.augment.crop_scale is \[0.5\]; it must be 2 items"),
        (["augment", "crop_scale"], [0.9, 0.1], "augment.crop_scale is"),
        (["augment"], 3, "config.augment is 3; it must be an object"),
        (["data", "archive"], "x.zip", "left out unless data.source is tiny_imagenet"),
        (["resolutions"], [[0.5, 48]], "resolutions is"),
    ],
)
def test_invalid_json_is_named_by_its_path(path, value, message):
    settings = dataclasses.asdict(PRESETS["digits"]())
    place = settings
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError, match=message) as caught:
        from_json(json.dumps(settings))
    assert "\n" not in str(caught.value)


KINDS = {"data.": DataConfig, "model.": ModelConfig, "augment.": AugmentConfig, "optim.": OptimConfig, "": Config}
FLOATS = [
    (kind, prefix, name)
    for prefix, kind in KINDS.items()
    for name, hint in typing.get_type_hints(kind).items()
    if hint is float or float in typing.get_args(hint)
]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize(("kind", "prefix", "name"), FLOATS)
def test_no_number_is_infinite(kind, prefix, name, value):
    with pytest.raises(UserError, match=f"^{prefix}{name} is {value}; it must be finite$"):
        kind(**{name: value})


def test_no_number_inside_pairs_is_infinite():
    with pytest.raises(UserError, match=r"augment\.crop_scale is .*; it must be finite"):
        AugmentConfig(crop_scale=(0.5, float("inf")))
    with pytest.raises(UserError, match=r"resolutions is .*; it must be finite"):
        Config(resolutions=((0.0, 32), (float("nan"), 48)))


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (Config, "epochs", 10**20, r"epochs is 1\d+; it must be at most 1,000,000"),
        (Config, "seed", 2**63, "seed is 9223372036854775808; it must be from 0 to 4294967295"),
        (Config, "seed", -1, "seed is -1"),
        (DataConfig, "split_seed", -1, r"data\.split_seed is -1; it must be 0 or more"),
    ],
)
def test_no_number_is_out_of_range(kind, field, value, message):
    with pytest.raises(UserError, match=message):
        kind(**{field: value})


def test_different_seeds_give_different_keys():
    keys = [jax.random.key_data(jax.random.key(seed)) for seed in (0, 1, MAX_SEED - 1, MAX_SEED)]
    assert len(np.unique(keys, axis=0)) == 4
    assert (jax.random.key_data(jax.random.key(MAX_SEED + 1)) == keys[0]).all()


def test_a_setting_that_a_run_does_not_have_is_the_default():
    settings = dataclasses.asdict(PRESETS["tiny_imagenet_gpu"]())
    del settings["model"]["stem"], settings["seed"]
    read = from_json(json.dumps(settings))
    assert (read.model.stem, read.seed) == (ModelConfig().stem, Config().seed)
    assert read.model.blocks == (1, 3, 4, 2, 1)


def test_text_that_is_not_json():
    with pytest.raises(UserError, match="not JSON"):
        from_json("{")


def test_a_fixed_network_refuses_a_shape():
    with pytest.raises(UserError, match="the network 'seed' is fixed"):
        ModelConfig(name="seed", widths=(1, 2, 3, 4))


def test_mixup_and_cutmix_stop_at_their_share_of_the_epochs():
    augment = AugmentConfig(flip=True, mixup=0.2, cutmix=1.0, mix_until=0.75)
    epochs = [Config(augment=augment, epochs=8).augmentation(epoch) for epoch in range(8)]
    assert epochs[:6] == [augment] * 6
    assert epochs[6:] == [dataclasses.replace(augment, mixup=0.0, cutmix=0.0)] * 2
    assert Config(augment=AugmentConfig(mixup=0.2), epochs=8).augmentation(7).mixup == 0.2


@pytest.mark.parametrize(
    ("batch_size", "count", "devices", "fits"),
    [(100, 100, 8, 96), (96, 100, 8, 96), (64, 10, 1, 10), (64, 3, 8, 8), (64, 1, 1, 64), (64, 2, 1, 2)],
)
def test_a_batch_of_all_pictures_has_equal_shares(batch_size, count, devices, fits):
    config = dataclasses.replace(PRESETS["digits"](), batch_size=batch_size)
    assert config.fit_batch(count=count, devices=devices) == fits
    frozen = dataclasses.replace(config, init_from="shipped", freeze="backbone")
    assert frozen.fit_batch(count=count, devices=devices) == batch_size


def test_resolution_changes_at_its_share_of_the_epochs():
    config = Config(data=DataConfig(image_size=64), resolutions=((0.0, 32), (0.5, 48), (0.9, 64)), epochs=10)
    assert [config.resolution(epoch) for epoch in range(10)] == [32] * 5 + [48] * 4 + [64]
    assert Config(data=DataConfig(image_size=24)).resolution(3) == 24


@pytest.mark.parametrize(("epochs", "sides"), [(1, [64]), (2, [32, 64]), (3, [32, 48, 64]), (4, [32, 48, 48, 64])])
def test_the_last_epoch_has_the_last_resolution_however_few_there_are(epochs, sides):
    config = Config(resolutions=((0.0, 32), (0.3, 48), (0.9, 64)), epochs=epochs)
    assert [config.resolution(epoch) for epoch in range(epochs)] == sides


@pytest.mark.parametrize(
    ("given", "fit", "crop"),
    [
        ({"image_size": 127}, "stretch", None),
        ({"image_size": 128}, "crop", 0.875),
        ({"image_size": 224, "crop": 0.9}, "crop", 0.9),
        ({"image_size": 32, "fit": "crop"}, "crop", 0.875),
        ({"image_size": 224, "fit": "pad"}, "pad", None),
        ({"image_size": 224, "fit": "stretch"}, "stretch", None),
    ],
)
def test_pictures_are_cropped_from_128_pixels_on_unless_the_settings_say_otherwise(given, fit, crop):
    resolved = DataConfig(**given).resolved()
    assert (resolved.fit, resolved.crop, resolved.filter) == (fit, crop, "bicubic")
    assert resolved.resolved() == resolved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop": 0.9}, "data.crop is 0.9; it must be left out unless data.fit is crop"),
        ({"crop": 0.9, "fit": "pad", "image_size": 224}, "data.crop is 0.9; it must be left out unless data.fit is"),
        ({"crop": 0.2, "fit": "crop"}, "data.crop is 0.2; it must be from .25 to 1"),
        ({"crop": 1.1, "fit": "crop"}, "data.crop is 1.1; it must be from .25 to 1"),
    ],
)
def test_a_share_to_crop_is_checked(given, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        DataConfig(**given)


def test_a_record_of_an_earlier_version_stretched_pictures():
    earlier = DataConfig(image_size=224, fit="stretch", filter="bicubic")
    assert from_json('{"data": {"image_size": 224}}').data == earlier
    now = from_json('{"data": {"image_size": 224, "fit": null, "filter": null}}').data
    assert now == DataConfig(image_size=224)
    assert now.resolved(crop=0.9, filter="bilinear") == DataConfig(
        image_size=224, fit="crop", crop=0.9, filter="bilinear"
    )


def test_where_a_run_is_logged_is_no_part_of_its_record():
    config = Config(log=LogConfig(mlflow="http://127.0.0.1:5000", wandb="pets"), epochs=2)
    assert config.recorded() == Config(epochs=2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", r"^log\.mlflow is ''; it must be left out, or not empty$"),
        (
            "https://me:secret@example.org/mlflow",
            r"^log\.mlflow has a user in its address; leave it out, and set MLFLOW_",
        ),
    ],
)
def test_an_address_to_log_to_has_no_password(address, message):
    with pytest.raises(UserError, match=message) as caught:
        LogConfig(mlflow=address)
    assert "secret" not in str(caught.value)
    assert LogConfig(mlflow="file:///home/me@example.org/runs").mlflow
