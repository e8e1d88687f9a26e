"""Initial weights: what is written is read, what does not fit is named, and a run starts from them once."""

import contextlib
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pictures import write_class_folders

from export.workdir import export_weights
from jaxcnn import data, processes, weights, weights_source
from jaxcnn.config import SHAPE, Config, DataConfig, ModelConfig, OptimConfig
from jaxcnn.errors import UserError
from jaxcnn.metadata import Metadata
from jaxcnn.models import registry
from jaxcnn.models.pretrained import Origin, Pretrained
from jaxcnn.optim import make_optimizer
from jaxcnn.presets import finetune
from jaxcnn.run.checkpoint import load_model
from jaxcnn.run.earlier_trainings import Training, read_earlier
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import create_state, init_variables, start_from
from jaxcnn.train import parse
from jaxcnn.training import begin, train
from jaxcnn.training_run import initial_state, prepare
from jaxcnn.weights import mean_of, read_same_weights, read_weights, write_weights
from jaxcnn.weights_source import read_shape

MODEL = ModelConfig(widths=(4, 6), blocks=(1, 0))
NAMES = ("cat", "dög", "eel")
PETS = Training("pets", "ask us", {"schedule": "9 epochs"})
HALF = 2**-11
"""The largest relative error of rounding to float16."""


def variables_of(model=MODEL, *, classes=3, seed=0):
    """Variables of noise, batch statistics too."""
    network = registry.build(model, classes=classes)
    shapes = jax.eval_shape(lambda: init_variables(jax.random.key(0), model=network, image_size=8))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)


def metadata_of(model=MODEL, **changes):
    metadata = Metadata(
        names=NAMES,
        wnids=("n1", "n2", "n3"),
        image_size=(8, 8),
        config=Config(model=model),
        dataset="pets",
        trainings=(PETS,),
    )
    return dataclasses.replace(metadata, **changes)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(path, variables_of(), metadata_of())
    return path


def rewrite(path: Path, change):
    """The file with other tensors or metadata, as another program writes it: without a checksum."""
    with safetensors.safe_open(path, framework="np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    metadata.pop("checksum", None)
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def tensors(elements):
    return arrays.arrays(np.float32, arrays.array_shapes(max_dims=4, max_side=4), elements=elements)


@given(tensors(st.floats(width=32, allow_nan=False, allow_infinity=False)) | tensors(st.floats(-4, 4, width=32)))
def test_half_precision_is_used_where_it_loses_nothing(values):
    kept = weights._compact(values)
    back = kept.astype(np.float32)
    if values.ndim == 1:
        assert kept.dtype == np.float32
    if kept.dtype == np.float32:
        np.testing.assert_array_equal(back, values)
    else:
        assert np.abs(back - values).max() <= HALF * np.abs(values).max()
    largest = np.abs(values).max()
    if values.ndim > 1 and 2**-14 <= largest <= 65504:
        assert kept.dtype == np.float16


def several(tmp_path, *changes):
    """Weights of trainings that each began with those before, with other metadata."""
    found = []
    for seed, change in enumerate(({}, *changes)):
        path = tmp_path / f"{seed}.safetensors"
        before = found[-1].trainings if found else ()
        own = Training("pets", "ask us", {"schedule": f"{seed} epochs"})
        write_weights(path, variables_of(seed=seed), metadata_of(**({"trainings": (*before, own)} | change)))
        found.append(read_weights(str(path)))
    return found


def test_the_mean_of_weights(tmp_path):
    first, second, third = several(tmp_path, {}, {})
    mean = mean_of([third, first, second])
    for name, values in mean.tensors.items():
        assert values.dtype == np.float32
        expected = (first.tensors[name] + second.tensors[name] + third.tensors[name]) / 3
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    *earlier, last = mean.trainings
    assert earlier == list(third.trainings)
    assert last.recipe == {"weights": "the mean of those at the end of the trainings 1, 2 and 3"}
    assert (last.dataset, last.license) == ("pets", "ask us")
    assert dataclasses.replace(mean, tensors=third.tensors, trainings=third.trainings) == third


def test_the_lineage_of_a_mean_lists_shared_trainings_once(tmp_path):
    shared, one = several(tmp_path, {})
    other = dataclasses.replace(one, trainings=(*shared.trainings, dataclasses.replace(PETS, license="free")))
    *earlier, last = mean_of([one, other]).trainings
    assert earlier == [*one.trainings, other.trainings[-1]]
    assert last.recipe == {"weights": "the mean of those at the end of the trainings 2 and 3"}
    assert last.license == "ask us"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": ModelConfig(widths=(4, 8), blocks=(1, 0))}, "of another network"),
        ({"names": ("cat", "dög", "fly")}, "for other classes"),
        ({"pictures": data.Fingerprint(train=1, validation=2, labels="a", pixels="c", side=8)}, "held out of its"),
        ({"pictures": None, "trained_on": DataConfig(source="digits", split_seed=1)}, "held out of its training"),
    ],
)
def test_weights_of_other_networks_classes_or_splits_are_not_averaged(tmp_path, change, difference):
    first, second = several(tmp_path, {})
    first = dataclasses.replace(first, pictures=data.Fingerprint(train=1, validation=2, labels="a", pixels="b", side=8))
    mean_of([first, second])  # in the second there is no record to compare, but the settings
    with pytest.raises(
        UserError, match=rf"weights of .*1\.safetensors are .*{difference}.* than the weights of .*0\.saf"
    ):
        mean_of([first, dataclasses.replace(second, **change)])


def test_weights_of_one_training_are_not_averaged(tmp_path):
    first, second = several(tmp_path, {})
    with pytest.raises(UserError, match=r"1\.safetensors has weights of the same training as .*1\.safetensors; leave"):
        mean_of([first, second, second])
    with pytest.raises(UserError, match=r"1\.safetensors has weights of the same training as .*1\.safetensors; leave"):
        mean_of([second, first, second])


@pytest.mark.parametrize("value", [65536.0, 1e38, 300.5 * 2**-24, 1e-7, 3e-8, 1e-30])
def test_what_float16_cannot_hold_stays_in_float32(value):
    kernel = np.full((3, 3, 2, 2), value, np.float32)
    assert weights._compact(kernel).dtype == np.float32
    kernel[0, 0, 0, 0] = 1.0  # beside this, what is tiny does not matter; what is huge does
    assert weights._compact(kernel).dtype == (np.float16 if value < 1 else np.float32)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        ModelConfig(widths=(4, 6), blocks=(0, 2), preactivation=True, stem=1),
        *(ModelConfig(name=name) for name in ("seed", "prototype1", "prototype6")),
    ],
    ids=lambda model: f"{model.name}-{model.stem}",
)
def test_what_is_written_comes_back(tmp_path, model):
    path, variables = tmp_path / "a.safetensors", variables_of(model)
    write_weights(path, variables, metadata_of(model, metrics={"top1": 0.5}))
    found = read_weights(str(path))
    assert (found.model, found.names, found.wnids, found.dataset) == (model, NAMES, ("n1", "n2", "n3"), "pets")
    assert read_shape(str(path)).model == model
    expected = by_path(variables)
    assert found.tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert found.tensors[name].dtype == np.float32
        bound = HALF * np.abs(values).max() if values.ndim > 1 else 0
        np.testing.assert_allclose(found.tensors[name], values, rtol=0, atol=bound, err_msg=name)
    filled = found.fill(variables_of(model, seed=1), with_head=True)
    assert jax.tree.structure(filled) == jax.tree.structure(variables)
    assert by_path(filled).keys() == expected.keys()
    for name, values in by_path(filled).items():
        np.testing.assert_array_equal(values, found.tensors[name])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_arrays_of_any_memory_layout_are_written(tmp_path, file):
    path = tmp_path / "b.safetensors"
    write_weights(path, jax.tree.map(np.asfortranarray, variables_of()), metadata_of())
    assert_same(read_weights(str(path)).tensors, read_weights(str(file)).tensors)


def test_a_file_records_what_it_was_trained_on(tmp_path):
    trained_on = DataConfig(source="pets", split_seed=3)
    pictures = data.Fingerprint(train=1, validation=2, labels="a", pixels="b", side=8)
    config = Config(data=trained_on, model=MODEL)
    path = tmp_path / "a.safetensors"
    write_weights(path, variables_of(), metadata_of(config=config, pictures=pictures))
    found = read_weights(str(path))
    assert (found.trained_on, found.pictures) == (trained_on, pictures)


def test_kernels_are_half_precision_and_the_metadata_is_json(tmp_path, file):
    with safetensors.safe_open(file, framework="np") as opened:
        kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    assert kinds == {name: "F16" if values.ndim > 1 else "F32" for name, values in by_path(variables_of()).items()}
    assert re.fullmatch(r"[0-9a-f]{8}", json.loads(metadata.pop("checksum")))
    assert metadata == metadata_of().to_props()


@pytest.mark.parametrize("name", ["resnet", "prototype1"])
def test_another_number_of_classes_gets_a_new_head(tmp_path, name):
    model = MODEL if name == "resnet" else ModelConfig(name="prototype1")
    path = tmp_path / "a.safetensors"
    write_weights(path, variables_of(model), metadata_of(model))
    found, fresh = read_weights(str(path)), variables_of(model, classes=5, seed=1)
    filled = by_path(found.fill(fresh, with_head=False))
    heads = {leaf for leaf in filled if "/classifier" in leaf}
    assert heads == {leaf for leaf in filled if filled[leaf].shape[-1:] == (5,)}
    for leaf, values in filled.items():
        np.testing.assert_array_equal(values, by_path(fresh)[leaf] if leaf in heads else found.tensors[leaf])
    with pytest.raises(UserError, match=r"classifier\S* is \[(600, |6, )?3\] there, \[(600, |6, )?5\] here"):
        found.fill(fresh, with_head=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (4, 8)}, "batch_stats/stage_1/norm/mean is [6] there, [8] here"),
        ({"blocks": (1, 1)}, "batch_stats/stage_1/block_0/norm_0/mean is absent there, [6] here"),
        ({"blocks": (0, 0)}, "batch_stats/stage_0/block_0/norm_0/mean is [4] there, absent here"),
        ({"stem": 1}, "params/stage_0/conv/kernel is [3, 3, 12, 4] there, [3, 3, 3, 4] here"),
    ],
)
def test_the_first_parameter_that_does_not_fit_is_named(file, change, message):
    with pytest.raises(UserError) as caught:
        read_weights(str(file)).fill(variables_of(dataclasses.replace(MODEL, **change)), with_head=False)
    assert f"the weights of {file} do not fit the network: {message}; " in str(caught.value)


@pytest.mark.parametrize(
    ("names", "wnids", "same"),
    [
        (NAMES, ("n1", "n2", "n3"), True),
        (NAMES, (), True),
        (NAMES, ("n1", "n3", "n2"), False),
        (("dög", "cat", "eel"), (), False),
        (NAMES[:2], (), False),
        ((*NAMES, "fox"), (), False),
    ],
)
def test_the_same_classes_are_the_same_names_in_the_same_order(file, names, wnids, same):
    found = read_weights(str(file))
    assert found.has_classes(names, wnids) is same
    assert dataclasses.replace(found, wnids=()).has_classes(names, wnids) is (names == NAMES)


def refuse(path: Path | str, message: str, readers=(read_weights, read_shape)) -> None:
    for read in readers:
        with pytest.raises(UserError, match=message) as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    write_weights(path, variables_of(), metadata_of())
    return path.read_bytes()


def test_processes_that_read_other_weights_are_refused(file, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "lead", lambda describe: dict(describe()))
    monkeypatch.setattr(processes, "share", lambda is_same: [True, is_same])
    assert read_same_weights(str(file)).names == NAMES
    monkeypatch.setattr(processes, "lead", lambda describe: describe() | {"params/classifier/bias": "0"})
    with pytest.raises(UserError, match=r"process 1 has other weights in .*a\.safetensors than process 0; copy them"):
        read_same_weights(str(file))


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_named(tmp_path_factory, content, share):
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    refuse(path, rf"^{re.escape(str(path))} cannot be read as a .safetensors file \(.+\); export or download it again$")


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_damage_to_the_header_is_a_user_error(tmp_path_factory, content, changes):
    path, damaged = tmp_path_factory.mktemp("damaged") / "a.safetensors", bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    for place, value in changes:
        damaged[int(place * header)] = value
    path.write_bytes(damaged)
    with contextlib.suppress(UserError):
        read_weights(str(path)).fill(variables_of(), with_head=True)


def put(key, value):
    return lambda tensors, metadata: metadata.update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: metadata.clear(), "was not made by .*: metadata.names is missing"),
        (put("config", "{"), "was not made by .*: metadata.config is not JSON"),
        (put("config", "[]"), r"metadata.config is \[\]; it must be an object"),
        (
            put("config", '{"model": {"width": 3}}'),
            "there is no metadata.config.model.width; metadata",
        ),
        (put("names", '"cat"'), "metadata.names is 'cat'; it must be a list"),
        (lambda tensors, metadata: metadata.pop("wnids"), "metadata.wnids is missing"),
        (lambda tensors, metadata: metadata.pop("trainings"), "metadata.trainings is missing"),
        (put("trainings", "3"), "metadata.trainings is 3; it must be a list"),
        (
            put("trainings", '[{"dataset": "pets", "license": "", "recipe": {"time": 3}}]'),
            r"was not made by .*: metadata.trainings\[0\].recipe.time is 3; it must be a text$",
        ),
    ],
)
def test_invalid_metadata_are_named(file, change, message):
    rewrite(file, change)
    refuse(file, f"^{re.escape(str(file))} .*{message}")


def set_tensor(name, values):
    return lambda tensors, metadata: tensors.update({name: values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_tensor("step", np.int32([3])), "step is of type I32, not F16 or F32"),
        (set_tensor("step", np.zeros((), np.float64)), "step is of type F64, not F16 or F32"),
        (
            set_tensor("params/classifier/bias", np.float32([0, np.nan, 0])),
            "is damaged: params/classifier/bias has values that are not finite",
        ),
        (set_tensor("step", np.float32([np.inf])), "is damaged: step has values that are not finite"),
        (set_tensor("params/stage_0", np.zeros(1, np.float32)), None),
    ],
)
def test_invalid_tensors_are_named(file, change, message):
    rewrite(file, change)
    assert read_shape(str(file)).model == MODEL
    if message is None:
        with pytest.raises(UserError, match=r"params/stage_0 is \[1\] there, absent here"):
            read_weights(str(file)).fill(variables_of(), with_head=False)
    else:
        refuse(file, f"^{re.escape(str(file))} .*{message}", [read_weights])


def test_a_flipped_bit_in_a_file_is_never_read(file):
    whole, random = file.read_bytes(), np.random.default_rng(0)
    # A file whose checksum has another name counts as one without a checksum, such as other programs write.
    name = whole.index(b'"checksum"')
    places = np.r_[8:name, name + len(b'"checksum"') : len(whole)]
    for place in random.choice(places, 50):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        file.write_bytes(content)
        refuse(file, re.escape(str(file)), [read_weights])
    file.write_bytes(whole)
    read_weights(str(file))


def test_a_source_that_is_not_weights_is_named(tmp_path):
    others = (
        "'efficientnet_lite0', 'efficientnet_lite1', 'efficientnet_lite2', timm:NAME, a .safetensors file or the "
        "workdir of a run"
    )
    refuse(tmp_path / "absent", f"init_from is '.*absent', which does not exist; give 'shipped', {others}$")
    (tmp_path / "model.onnx").write_bytes(b"")
    refuse(tmp_path / "model.onnx", r"does not end with .safetensors; `python -m export WORKDIR -o NAME.safetensors`")
    refuse(tmp_path, "is not the workdir of a training run")
    refuse("", f"init_from is empty; give 'shipped', {others}$")
    for typo, meant in (("efficientnet-lite0", "efficientnet_lite0"), ("shiped", "shipped")):
        hint = f"did you mean '{meant}'. Otherwise give 'shipped', {others}$"
        refuse(typo, f"^init_from is '{typo}', which does not exist; {hint}")
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "bare.safetensors")
    refuse(tmp_path / "bare.safetensors", "was not made by .*: metadata.names is missing")


def test_the_home_directory_is_expanded(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    assert read_shape(f"~/{file.name}").model == MODEL


def test_the_shipped_weights_are_beside_the_servers_model(monkeypatch, file):
    from server.settings import _SHIPPED_MODEL

    assert weights_source.SHIPPED.with_suffix(".onnx") == _SHIPPED_MODEL
    assert Path(importlib.util.find_spec("server").origin).parent == weights_source.SHIPPED.parents[1]
    monkeypatch.setattr(weights_source, "SHIPPED", file)
    assert read_weights("shipped").names == NAMES
    assert read_weights("shipped").source == "shipped"
    monkeypatch.setattr(weights_source, "SHIPPED", file.parent / "absent")
    refuse(
        "shipped",
        f"'shipped', but {re.escape(str(file.parent))}/absent is missing; give 'eff.*, a .safetensors file or",
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_a_state_starts_from_variables_with_any_optimizer(name):
    optimizer = make_optimizer(OptimConfig(name=name), steps=10)
    network, loaded = registry.build(MODEL, classes=3), variables_of(seed=3)
    state = create_state(jax.random.key(0), model=network, optimizer=optimizer, image_size=8, averaged=True)
    started = start_from(state, loaded)
    assert_same(started.variables, loaded)
    assert_same(started.average, loaded)
    assert_same(started.opt_state, optimizer.init(jax.tree.map(jnp.asarray, loaded)["params"]))
    for a, b in zip(*(jax.tree.leaves(tree) for tree in (started.variables, started.average)), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
    assert start_from(state._replace(average=None), loaded).average is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("pictures"), ("ant", "bee", "cow"), count=16, size=12)


@pytest.fixture
def config(pictures, tmp_path, file):
    return Config(
        data=DataConfig(source=str(pictures), image_size=12, cache_dir=str(tmp_path / "cache")),
        model=MODEL,
        optim=OptimConfig(learning_rate=0.05, ema_decay=0.5),
        init_from=str(file),
        epochs=1,
        batch_size=8,
    )


@pytest.mark.run
def test_a_run_starts_from_the_weights_with_a_new_head(config, tmp_path, file, capsys):
    found = read_weights(str(file))
    run = prepare(config, data.load(config.data))
    state, fresh = initial_state(run, found), initial_state(run)
    for path, values in by_path(state.variables).items():
        expected = by_path(fresh.variables)[path] if "/classifier/" in path else found.tensors[path]
        np.testing.assert_array_equal(values, expected, err_msg=path)
    assert_same(state.average, state.variables)
    frozen = dataclasses.replace(config, optim=OptimConfig(learning_rate=1e-30))
    train(frozen, tmp_path / "run")
    trained = by_path(load_model(tmp_path / "run").variables["params"])
    for path, values in by_path(state.variables["params"]).items():
        np.testing.assert_allclose(trained[path], values, rtol=0, atol=1e-20, err_msg=path)
    said = capsys.readouterr().err
    assert f"\ninitial weights: {file}, trained on pets, with a new classifier\n" in said
    recorded = Workdir(tmp_path / "run").read_config()
    assert (recorded.init_from, recorded.model) == (str(file), MODEL)
    assert read_weights(str(tmp_path / "run")).trainings[:-1] == (PETS,)


def test_weights_of_others_start_a_run_and_are_recorded(config, tmp_path, file, monkeypatch, capsys):
    found = read_weights(str(file))
    pretrained = Pretrained(
        model=MODEL,
        tensors=found.tensors,
        names=("ant", "bee", "cow"),
        side=12,
        dataset="ImageNet-1k",
        license="MIT",
        origin=Origin(name="pets.pth", sha256="abc"),
    )
    for module in (weights, weights_source):
        monkeypatch.setattr(module, "read_pretrained", lambda source: pretrained if source == "pets" else None)
    assert read_shape("pets").model == MODEL
    seen = dataclasses.replace(data.load(config.data), wnids=("n01440764", "n01443537", "n01484850"))
    monkeypatch.setattr(data, "load", lambda settings: seen)
    with begin(dataclasses.replace(config, init_from="pets"), tmp_path / "run") as start:
        for path, values in by_path(start.state.variables).items():
            np.testing.assert_array_equal(values, found.tensors[path], err_msg=path)
    said = capsys.readouterr().err
    assert "\ninitial weights: pets, trained on ImageNet-1k, the classifier too, for the same classes\n" in said
    warning = (
        f"the initial weights have probably seen the validation pictures of {seen.name}, which come from ImageNet: "
    )
    assert f"\nwarning: {warning}" in said
    (earlier,) = read_earlier(Workdir(tmp_path / "run").earlier_trainings)
    assert (earlier.dataset, earlier.license) == ("ImageNet-1k", "weights: MIT")
    assert earlier.recipe["weights"] == "pets.pth, sha256 abc"
    assert earlier.recipe["warning"].startswith(warning)
    assert "published top-1 accuracy" not in earlier.recipe
    mean = mean_of([read_weights("pets"), dataclasses.replace(found, names=pretrained.names)])
    assert mean.trainings[:2] == (read_weights("pets").trainings[0], PETS)


@pytest.mark.run
def test_pictures_that_the_weights_have_seen_are_not_held_out(config, tmp_path, file, capsys):
    """They were the training pictures of a folder that has its own validation pictures."""
    seen = dataclasses.asdict(data.load(config.data, hold_out=False).fingerprint())
    rewrite(file, lambda tensors, metadata: metadata.update(pictures=json.dumps(seen)))
    message = r"at least 6 of the 6 validation pictures of pictures\S* are pictures that the model was trained on"
    with pytest.raises(UserError, match=message), begin(config, tmp_path / "run"):
        pass
    allowed = dataclasses.replace(config, data=dataclasses.replace(config.data, allow_leaks=True))
    with begin(allowed, tmp_path / "run"):
        pass
    assert re.search(f"warning: {message}", capsys.readouterr().err)


@pytest.mark.run
def test_the_head_is_kept_if_the_classes_are_the_same(config, tmp_path, file, capsys):
    rewrite(file, lambda tensors, metadata: metadata.update(names='["ant", "bee", "cow"]'))
    train(dataclasses.replace(config, optim=OptimConfig(learning_rate=1e-30)), tmp_path / "run")
    assert "trained on pets, the classifier too, for the same classes\n" in capsys.readouterr().err
    kernel = load_model(tmp_path / "run").variables["params"]["classifier"]["kernel"]
    expected = read_weights(str(file)).tensors["params/classifier/kernel"]
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-20)


@pytest.mark.run
def test_a_resumed_run_does_not_need_the_weights(config, tmp_path, file):
    options = command(config, tmp_path / "run")
    train(parse(options).config, tmp_path / "run")
    file.unlink()
    longer = parse([*options, "--epochs", "2"]).config
    before = read_weights(str(tmp_path / "run")).trainings
    assert (longer.model.widths, longer.model.blocks) == (MODEL.widths, MODEL.blocks)
    train(longer, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # The fitted classifier is measured before the first step.
    assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [0, 1, 2]
    earlier, own = read_weights(str(tmp_path / "run")).trainings
    assert (earlier, before[0]) == (PETS, PETS)
    shorter = before[1].recipe["schedule"]
    assert own.recipe["schedule"] == f"until step 5 {shorter}; then {shorter.replace('1 epoch ', '2 epochs ')}"
    with pytest.raises(UserError, match="which does not exist"):
        parse(command(config, tmp_path / "other"))


@pytest.mark.run
def test_a_run_that_started_without_the_weights_is_refused(config, tmp_path, file):
    train(dataclasses.replace(config, init_from=None), tmp_path / "run")
    other = dataclasses.replace(config, model=dataclasses.replace(MODEL, stem=1))
    with pytest.raises(UserError, match=f"holds a run with init_from None, not '{re.escape(str(file))}'"):
        train(other, tmp_path / "run")


@pytest.mark.run
def test_a_run_can_start_from_the_best_checkpoint_of_another(config, tmp_path):
    train(dataclasses.replace(config, init_from=None, epochs=2), tmp_path / "first")
    best = load_model(tmp_path / "first")
    found = read_weights(str(tmp_path / "first"))
    assert (found.model, found.names, found.dataset) == (MODEL, ("ant", "bee", "cow"), best.dataset)
    assert_same(found.fill(variables_of(), with_head=True), best.variables)
    evaluation = train(dataclasses.replace(config, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert evaluation is not None
    (earlier,) = found.trainings
    assert (earlier.dataset, earlier.license) == (best.dataset, best.license)
    assert earlier.recipe["this checkpoint"] == f"after {best.step} steps"
    assert read_weights(str(tmp_path / "second")).trainings[:-1] == (earlier,)
    otherwise = dataclasses.replace(config, data=dataclasses.replace(config.data, split_seed=1))
    for first in (tmp_path / "first", export_weights(tmp_path / "first", tmp_path / "first.safetensors")):
        with pytest.raises(UserError, match="would be held out that the model was trained on"):
            train(dataclasses.replace(otherwise, init_from=str(first)), tmp_path / "third")
    train(dataclasses.replace(otherwise, init_from=None), tmp_path / "third")


def command(config: Config, workdir: Path) -> list[str]:
    given = f"--data.source {config.data.source} --data.image_size 12 --data.cache_dir {config.data.cache_dir}"
    return [
        "finetune",
        *given.split(),
        "--batch_size",
        "8",
        "--epochs",
        "1",
        "--freeze",
        "none",
        "--init_from",
        str(config.init_from),
        "--workdir",
        str(workdir),
    ]


@pytest.mark.parametrize("option", ["--init_from {}", "--init_from={}", "--init-from {}"])
@pytest.mark.parametrize("preset", ["finetune", "folder", "tiny_imagenet_seed", "tiny_imagenet_gpu"])
def test_the_network_is_that_of_the_weights(file, preset, option):
    model = parse([preset, *option.format(file).split(), "--workdir", str(file.parent / "new")]).config.model
    assert [getattr(model, name) for name in SHAPE] == [getattr(MODEL, name) for name in SHAPE]


def test_pictures_of_finetune_have_the_size_that_the_weights_were_trained_with(file, tmp_path):
    new = ["--workdir", str(tmp_path / "new")]
    assert metadata_of().config.data.image_size == 32
    given = ["--init_from", str(file), *new]
    assert parse(["finetune", *given]).config.data.image_size == 32
    assert parse(["finetune", *given, "--data.image_size", "48"]).config.data.image_size == 48
    assert parse(["folder", *given]).config.data.image_size == 64
    assert parse(["finetune", *new]).config.data.image_size == 224
    assert parse(["finetune", "--init_from", "shipped", *new]).config.data.image_size == 64


def test_a_head_of_other_features_is_not_copied(file):
    given = read_weights(str(file))
    split = data.Split(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 0], np.int32))
    dataset = data.Dataset(name="pets", names=given.names, wnids=given.wnids, license="", train=split, validation=split)
    for pooling, same in (("last", True), ("all", False)):
        config = Config(
            data=DataConfig(image_size=8), model=dataclasses.replace(MODEL, pooling=pooling), init_from=str(file)
        )
        params = initial_state(prepare(config, dataset), given).variables["params"]
        copied = np.array_equal(params["classifier"]["bias"], given.tensors["params/classifier/bias"])
        assert copied == same
        np.testing.assert_array_equal(params["stage_0"]["conv"]["kernel"], given.tensors["params/stage_0/conv/kernel"])


def test_only_the_shape_of_the_network_comes_from_the_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    other = ModelConfig(widths=(4, 6), blocks=(1, 0), dropout=0.5, precision="bfloat16", cpu_kernels=False)
    write_weights(path, variables_of(), metadata_of(other))
    parsed = parse(["finetune", "--init_from", str(path), "--model.dropout", "0.25"])
    assert parsed.config.model == dataclasses.replace(
        MODEL, dropout=0.25, precision=finetune().model.precision, pooling=finetune().model.pooling
    )
    own = ModelConfig(dropout=0.5, inference_side=80)
    assert own.with_shape_of(ModelConfig(name="seed")) == ModelConfig(name="seed")
    assert own.with_shape_of(ModelConfig(stem=4)) == dataclasses.replace(own, stem=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model.name seed", "model.name is 'seed', but 'resnet' in the weights of"),
        ("--model.widths 4 8", r"model.widths is \(4, 8\), but \(4, 6\) in .*; leave out model.widths, or start"),
        ("--model.blocks 1 1", r"model.blocks is \(1, 1\), but \(1, 0\)"),
        ("--model.stem 1", "model.stem is 1, but 2"),
        ("--model.preactivation", "model.preactivation is True, but False"),
    ],
)
def test_an_option_that_contradicts_the_weights_is_refused(file, options, message):
    for preset in ("finetune", "tiny_imagenet"):
        with pytest.raises(UserError, match=message) as caught:
            parse([preset, "--init_from", str(file), *options.split()])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["finetune", "folder"])
def test_a_file_that_contradicts_the_weights_is_refused_as_an_option_is(file, tmp_path, preset):
    settings = tmp_path / "a.toml"
    named = f"init_from = '{file}'\n"
    for text, options in ((named, []), ("", ["--init_from", str(file)])):
        settings.write_text(f'{text}[model]\nname = "resnet50"')
        with pytest.raises(
            UserError, match=r"model\.name is 'resnet50', but 'resnet' in .*; leave out model\.name, or"
        ):
            parse([preset, "--config", str(settings), *options])
    # What agrees is accepted, and pictures have the size that they have with the option.
    settings.write_text(f"{named}[model]\nwidths = [4, 6]\nblocks = [1, 0]\ndropout = 0.25")
    from_file = parse([preset, "--config", str(settings)]).config
    assert from_file == parse([preset, "--init_from", str(file), "--model.dropout", "0.25"]).config


def test_the_record_of_a_run_with_initial_weights_starts_another(file, tmp_path):
    config = parse(["finetune", "--init_from", str(file)]).config
    Workdir(tmp_path / "run").record(config, Classes(NAMES, (), "pets", ""))
    record = ["--config", str(tmp_path / "run" / "config.json")]
    assert parse(record).config == config
    other = parse([*record, "--init_from", "shipped"]).config
    assert (other.model.widths, other.data.image_size) == (read_shape("shipped").model.widths, 64)
    assert parse([*record, "--init_from", "None"]).config == config.without_weights()


@pytest.mark.parametrize("setting", ["freeze = 'backbone'", "fit_head = true"])
def test_what_needs_initial_weights_is_refused_without(file, tmp_path, setting):
    settings = tmp_path / "a.toml"
    settings.write_text(setting)
    name, value = setting.split(" = ")
    message = rf"{name} is {value.title() if value == 'true' else value}; it must be \w+ without init_from$"
    for arguments in (["folder"], ["finetune", "--init_from", "None"]):
        with pytest.raises(UserError, match=message):
            parse([*arguments, "--config", str(settings)])
    flags = ["--freeze", "backbone"] if name == "freeze" else ["--fit_head"]
    with pytest.raises(UserError, match=message):
        parse(["folder", *flags])
    # The weights may come from elsewhere.
    assert parse(["folder", "--config", str(settings), "--init_from", str(file)]).config.init_from == str(file)
    settings.write_text(f"init_from = 'None'\n{setting}")
    with pytest.raises(UserError, match=message):
        parse(["finetune", "--config", str(settings)])


def test_an_option_that_agrees_with_the_weights_is_accepted(file):
    options = "--model.widths 4 6 --model.blocks 1 0 --model.name resnet --model.stem 2 --model.no_preactivation"
    assert parse(["finetune", "--init_from", str(file), *options.split()]).config.model.widths == (4, 6)


def test_without_the_shipped_weights_other_sources_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights_source, "SHIPPED", tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="init_from is 'shipped', but"):
        parse(["finetune", "--init_from", "shipped"])
    scratch = parse(["finetune", "--init_from", "None"]).config
    assert (scratch.init_from, scratch.freeze) == (None, "none")
    with pytest.raises(SystemExit):
        parse(["finetune", "--help"])
    assert "--init_from" in capsys.readouterr().out
    for wrong in ("--init_from", "--help=yes"):
        with pytest.raises(UserError, match=r"init_from|help"):
            parse(["finetune", wrong])
