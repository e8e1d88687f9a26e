"""`python -m jaxcnn.plan`: steps compiled for machines that are not here, and what is said about them."""

import contextlib
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType
from pictures import write_class_folders

from jaxcnn import data, defaults
from jaxcnn import plan as command
from jaxcnn.config import SHAPE, ModelConfig, ParallelConfig
from jaxcnn.distributed import AXES
from jaxcnn.errors import UserError
from jaxcnn.hlo import Traffic
from jaxcnn.lowering import abstract_step, lower_step
from jaxcnn.plan_summary import describe
from jaxcnn.planning import Plan, plan, read_needed_bytes
from jaxcnn.presets import PRESETS
from jaxcnn.topology import find_topology
from jaxcnn.training_run import prepare
from jaxcnn.weights_source import Shape, read_shape

ROOT = Path(__file__).parent.parent
SMALL = "--model.widths 8 --model.blocks 1 --batch_size 256".split()


def has(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


needs_tpu = pytest.mark.skipif(not has("libtpu"), reason="needs libtpu: pip install 'jaxcnn[tpu]'")
needs_cuda = pytest.mark.skipif(
    not has("jax_plugins.xla_cuda13"), reason="needs JAX's plugin for CUDA: pip install 'jaxcnn[cuda]'"
)


def small_config(preset="digits", **fields):
    config = PRESETS[preset]()
    return dataclasses.replace(config, model=ModelConfig(widths=(8,), blocks=(1,)), batch_size=256, **fields)


FOUND = Plan(
    topology=find_topology("v5e:2x2"),
    batch_size=1024,
    resolution=64,
    parameters=5_000_000,
    peak_bytes=2_242_000_000,
    fits=True,
    flops=5e12,
    bytes=25e9,
    collectives={"all-reduce": Traffic(56, 77_000_000)},
    cycles={"augmentation": 1_000_000, "forward": 20_000_000, "backward": 50_000_000, "optimizer": 4_000_000},
    traffic={"augmentation": 1, "forward": 1, "backward": 1, "optimizer": 1},
)


def test_a_plan_is_described_for_people():
    text = describe(FOUND)
    assert "4 x TPU v5e (v5e:2x2), batch of 1,024 pictures of 64x64" in text
    assert "fits: 2.24 of 16.9 GB of each device" in text
    assert "1.3% of the cycles for augmentation" in text
    assert "56 all-reduce of 77.0 MB" in text
    assert "75.00 million cycles, 50 ms at 1.5 GHz" in text
    assert "roofline: at least 30.5 ms, bound by memory" in text
    assert "estimate, not measured" in text
    assert "1: 100.0%, 2: " in text


def test_a_plan_that_does_not_fit_says_what_to_do():
    text = describe(dataclasses.replace(FOUND, fits=False, peak_bytes=30_000_000_000))
    assert text.splitlines()[1:] == [
        "does not fit: 30.0 GB are needed, of 16.9 GB of each device; lower --batch_size, or use more devices"
    ]


def test_the_error_of_a_compiler_says_how_much_memory_is_needed():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (41.72G) exceeds available HBM (15.75G). HLO module: jit__lambda."
    )
    assert read_needed_bytes(message) == int(41.72 * 2**30)
    assert read_needed_bytes("RESOURCE_EXHAUSTED") == 0


def test_json_has_the_same_fields_whether_the_step_fits_or_not():
    fits, not_fits = FOUND.to_json(), dataclasses.replace(FOUND, fits=False, cycles={}).to_json()
    assert fits.keys() == not_fits.keys()
    assert not_fits["images_per_second_estimate"] is not_fits["flops"] is None
    assert fits["collectives"] == {"all-reduce": {"count": 56, "bytes": 77_000_000}}
    assert fits["seconds_estimate"] == pytest.approx(0.05 + fits["collective_seconds_estimate"])


def test_no_step_is_faster_than_its_roofline():
    found = dataclasses.replace(FOUND, bytes=100e9)
    assert found.cycle_seconds == pytest.approx(0.05)
    assert found.compute_seconds == found.roofline_seconds == pytest.approx(100e9 / 819e9)
    assert found.seconds_estimate == found.roofline_seconds + found.collective_seconds


def test_without_cycles_the_estimate_is_the_roofline():
    found = dataclasses.replace(FOUND, cycles={}, topology=find_topology("h100:1"), collectives={})
    assert found.seconds_estimate == found.roofline_seconds == pytest.approx(25e9 / 3352e9)
    assert found.efficiencies == {}
    assert "cycles" not in describe(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "there is no preset 'nothing'; there are: digits"),
        ("digits --topology v7:2x2", "there is no topology 'v7:2x2'; there are v5e:1x1"),
        ("digits --classes 1", "classes is 1; it must be at least 2"),
        ("digits --batch", "there is no option --batch"),
        ("digits --batch_size 250 --topology v5e:2x2", "batch_size is 250, .* among 4 x TPU v5e .* a multiple of 4$"),
        ("digits --model.norm_group 6", "64 pictures of a batch cannot be split into 1 parts .* groups of 6"),
        (
            "tiny_imagenet --parallel.accumulate 4",
            "parallel.accumulate is 4, but the network takes statistics over the",
        ),
        ("digits --distill.teachers a b", "distill.teachers predict beside the step, which a plan does not"),
        ("digits --parallel.fsdp 3 --topology v5e:2x2", "parallel.fsdp is 3, which does not divide 4 x TPU v5e"),
        ("finetune", "freeze is backbone, so that no steps are taken; give --freeze none to plan"),
        ("finetune --freeze backbone --init_from shipped", "freeze is backbone, so that no steps are taken"),
    ],
)
def test_a_mistake_is_one_line(line, message):
    with pytest.raises(UserError, match=message) as caught:
        command.main(line.split())
    assert "\n" not in str(caught.value)


def test_training_refuses_the_same_parts():
    config = dataclasses.replace(PRESETS["digits"](), parallel=ParallelConfig(accumulate=4))
    with pytest.raises(UserError) as planned:
        plan(config, find_topology("v5e:1x1"), classes=10)
    with pytest.raises(UserError, match=f"^{re.escape(str(planned.value))}$"):
        prepare(config, data.load(config.data))


def test_another_network_has_its_default_shape():
    assert command.parse(["digits", "--model.name", "resnet50"]).config.model == ModelConfig(name="resnet50")


def test_the_network_is_that_of_the_initial_weights():
    shipped = read_shape("shipped").model
    for line in ("folder --init_from shipped", "finetune --init_from shipped --freeze none"):
        model = command.parse(line.split()).config.model
        assert [getattr(model, name) for name in SHAPE] == [getattr(shipped, name) for name in SHAPE]
    assert command.parse(["finetune", "--init_from", "shipped"]).config.data.image_size == 64
    with pytest.raises(UserError, match=r"model\.name is 'resnet50', but 'resnet' in the weights of shipped"):
        command.parse("folder --init_from shipped --model.name resnet50".split())
    assert command.parse(["finetune", "--init_from", "None"]).config.freeze == "none"


def test_pictures_are_cropped_as_others_trained_the_weights(monkeypatch):
    shape = Shape(ModelConfig(name="efficientnet_lite1"), 240, 0.9)
    monkeypatch.setattr(defaults, "read_shape", lambda source: shape)
    line = ["folder", "--init_from", "others", "--data.image_size", "240"]
    assert command.parse(line).config.data.crop == 0.9
    assert command.parse([*line, "--data.crop", "1"]).config.data.crop == 1
    assert command.parse(["imagenet"]).config.data.crop == 0.875


def test_the_weights_of_a_preset_need_not_be_there(monkeypatch):
    monkeypatch.setattr(defaults, "read_shape", lambda source: pytest.fail("the weights were looked up"))
    assert command.parse(["finetune"]).config.model == PRESETS["finetune"]().model


def test_teachers_of_a_file_can_be_left_out(tmp_path):
    (tmp_path / "a.toml").write_text('[distill]\nteachers = ["a"]')
    arguments = ["--config", str(tmp_path / "a.toml"), "--distill.teachers"]
    assert command.parse(arguments).config.distill.teachers == ()


def test_a_step_takes_pictures_as_the_store_crops_them(tmp_path):
    folder = write_class_folders(tmp_path / "pictures", count=4, size=40)
    for store in ("decoded", "encoded"):
        line = (
            "--data.image_size 16 --data.fit crop --data.crop .5 --batch_size 4 --model.precision float32 --data.store"
        )
        config = command.parse(["folder", "--data.source", str(folder), *line.split(), store]).config
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(tmp_path / "cache")))
        run = prepare(config, data.load(config.data))
        with contextlib.closing(data.train_batches(run.dataset.train, seed=0, batch_size=4)) as batches:
            batch = next(batches)
        step, (_, images, _, _) = abstract_step(config, classes=2, mesh=None)
        assert (images.shape, step.keywords["augment_config"]) == (batch.images.shape, run.augmentation(0))


def test_settings_come_from_a_file(tmp_path):
    (tmp_path / "a.toml").write_text('batch_size = 512\n[model]\nname = "resnet50"')
    config = command.parse(["--config", str(tmp_path / "a.toml"), "--epochs", "3"]).config
    assert (config.batch_size, config.model.name, config.epochs) == (512, "resnet50", 3)


@pytest.mark.run
@pytest.mark.parametrize("name", ["digits", "tiny_imagenet_gpu", "imagenet_convnext"])
def test_steps_are_exported_for_cuda_and_tpu(name):
    config = small_config(name)
    step, arguments = abstract_step(config, classes=10, mesh=None)
    exported = jax.export.export(jax.jit(step), platforms=("cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cuda", "tpu")
    assert len(exported.out_avals) == len(jax.tree.leaves(arguments[0])) + 3


@needs_tpu
@pytest.mark.run
def test_a_small_step_is_compiled_for_256_chips():
    found = plan(small_config(), find_topology("v5e:16x16"), classes=10)
    assert found.fits
    assert found.topology.devices == 256
    (reduced,) = found.collectives.values()
    parameters = 4 * found.parameters
    assert parameters <= reduced.bytes <= 3 * parameters
    # Two for each of three normalisations, one for the gradients, one for the metrics.
    assert reduced.count <= 8
    assert found.peak_bytes < 20e6
    assert found.augmentation_share < 0.5
    assert found.cycle_seconds is not None
    assert found.flops > 0
    assert 0 < found.roofline_seconds < found.cycle_seconds


@needs_tpu
@pytest.mark.run
def test_all_parts_of_a_batch_count():
    grouped = dataclasses.replace(small_config(), model=ModelConfig(widths=(8,), blocks=(1,), norm_group=64))
    divided = dataclasses.replace(grouped, parallel=ParallelConfig(accumulate=4))
    whole, parts = (plan(config, find_topology("v5e:1x1"), classes=10) for config in (grouped, divided))
    assert parts.flops == pytest.approx(whole.flops, rel=0.1)
    for phase in ("forward", "backward"):
        assert parts.cycles[phase] > 0.9 * whole.cycles[phase]


@needs_tpu
@pytest.mark.run
def test_gradients_of_a_step_in_bfloat16_are_summed_in_float32():
    model = ModelConfig(widths=(8, 16), blocks=(1, 1), precision="bfloat16")
    config = dataclasses.replace(small_config(), model=model)
    devices = find_topology("v5e:2x2").open()
    mesh = jax.make_mesh((4, 1), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)
    text = lower_step(config, classes=10, mesh=mesh).compile().as_text()
    kinds = re.findall(r"= (\S+|\(.*?\)) all-reduce(?:-start)?\(", text)
    assert kinds
    assert not [kind for kind in kinds if "bf16" in kind]


@needs_tpu
@pytest.mark.run
def test_a_divided_state_takes_less_memory_and_is_gathered():
    wide = dataclasses.replace(small_config(), model=ModelConfig(widths=(256,), blocks=(1,)))
    divided = dataclasses.replace(wide, parallel=ParallelConfig(fsdp=16))
    whole, parts = (plan(config, find_topology("v5e:4x4"), classes=10) for config in (wide, divided))
    assert parts.collectives["all-gather"].count > 0
    assert "all-gather" not in whole.collectives
    assert parts.peak_bytes < whole.peak_bytes


@needs_tpu
@pytest.mark.run
def test_the_command_prints_one_json_object():
    done = subprocess.run(
        [sys.executable, "-m", "jaxcnn.plan", "digits", "--topology", "v5e:2x2", "--json", *SMALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    # What takes more than two seconds is announced, and its time printed.
    stage = "loading libraries|compiling the step for v5e:2x2"
    assert re.fullmatch(rf"(({stage}) \.\.\.\n\2: \d+ s\n){{0,2}}", done.stderr)
    found = json.loads(done.stdout)
    assert found["fits"] is True
    assert found["devices"] == 4
    assert found["collectives"]["all-reduce"]["count"] > 0


@needs_cuda
@pytest.mark.run
def test_a_small_step_is_compiled_for_16_gpus():
    found = plan(small_config(), find_topology("h100:2x8"), classes=10)
    assert found.fits
    assert found.topology.devices == 16
    assert sum(traffic.count for traffic in found.collectives.values()) <= 20
    assert found.cycle_seconds is None
    assert found.flops > 0
    assert found.bytes > 0


@needs_tpu
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "classes", "collectives", "peak"),
    [("tiny_imagenet_gpu", 200, 60, 3e9), ("tiny_imagenet", 200, 40, 1e9)],
)
def test_presets_fit_four_chips(name, classes, collectives, peak):
    config = dataclasses.replace(PRESETS[name](), batch_size=1024)
    found = plan(config, find_topology("v5e:2x2"), classes=classes)
    assert found.fits
    assert found.peak_bytes < peak
    assert sum(traffic.count for traffic in found.collectives.values()) <= collectives
    assert found.augmentation_share < 0.05
