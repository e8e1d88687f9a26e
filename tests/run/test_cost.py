"""The cost of a training: its time, and the operations of its layers, compared with counts by hand."""

import dataclasses
import re

import pytest
from log_lines import train_record

from jaxcnn.config import Config, DataConfig, DistillConfig, ModelConfig
from jaxcnn.run.cost import (
    describe_arithmetic,
    describe_expected,
    describe_time,
    expected_seconds,
    format_duration,
    picture_flops,
    pictures_by_side,
)
from jaxcnn.run.metrics_log import RunLog
from jaxcnn.run.sessions import Session


def test_operations_of_a_network_counted_by_hand():
    # The stem folds the picture into 16x16x12; one 3x3 convolution to 32 channels, global pooling, one dense layer.
    found = picture_flops(ModelConfig(widths=(32,), blocks=(0,)), classes=100, side=32)
    assert found == 2 * 16 * 16 * 32 * 3 * 3 * 12 + 2 * 32 * 100


def test_operations_of_a_residual_network_counted_by_hand():
    shape = ModelConfig(widths=(8, 16), blocks=(1, 2), stem=1)
    first = 9 * (3 * 8 + 2 * 8 * 8)  # Per position: the stage's first convolution, then two for each block.
    second = 9 * (8 * 16 + 4 * 16 * 16)
    expected = 2 * (16 * 16 * first + 8 * 8 * second + 16 * 5)
    assert picture_flops(shape, classes=5, side=16) == expected


def test_operations_do_not_depend_on_kernels_and_precision():
    config = ModelConfig(widths=(8,), blocks=(1,))
    other = ModelConfig(widths=(8,), blocks=(1,), precision="bfloat16", cpu_kernels=False)
    assert picture_flops(config, classes=3, side=16) == picture_flops(other, classes=3, side=16)


def test_pictures_are_counted_at_the_size_they_were_seen():
    config = Config(data=DataConfig(image_size=64), epochs=4, batch_size=8, resolutions=((0.0, 32), (0.5, 64)))
    log = RunLog([train_record(step) for step in (5, 10, 20, 30, 35)], [])
    assert pictures_by_side(config, log) == {32: 160, 64: 120}
    assert pictures_by_side(config, RunLog([], [])) == {}


def test_arithmetic_is_three_times_the_forward_pass():
    config = Config(
        data=DataConfig(image_size=16),
        model=ModelConfig(widths=(8,), blocks=(1,)),
        epochs=2,
        batch_size=10,
        resolutions=((0.0, 8), (0.5, 16)),
    )
    log = RunLog([train_record(100, epoch=1.0), train_record(150, epoch=1.5)], [])
    text = describe_arithmetic(config, log, classes=3)
    total = 3 * sum(count * picture_flops(config.model, classes=3, side=side) for side, count in ((8, 1000), (16, 500)))
    assert float(text.split()[0]) == pytest.approx(total, rel=0.01)
    enlarging = dataclasses.replace(config, model=dataclasses.replace(config.model, inference_side=32))
    assert describe_arithmetic(enlarging, log, classes=3) == text
    assert "1,000 pictures of 8x8 pixels at 0.06 million each and 500 pictures of 16x16 pixels at 0.26" in text
    taught = dataclasses.replace(config, distill=DistillConfig(teachers=("teacher.onnx",)))
    assert describe_arithmetic(taught, log, classes=3) == f"{text}, without what its teachers compute"


LOG = RunLog([train_record(100, epoch=1.0, images_per_second=2.0)], [])


def session(environment, *, start=0, end=None):
    return Session(start, end, Config(batch_size=36), environment)


def test_time_on_processors_is_in_core_hours():
    environment = {"devices": "cpu", "cores": "2", "processor": "EPYC"}
    told = describe_time(LOG, [session(environment)])
    assert told == "30 min 0 s in training steps, 1 core-hour on 2 cores of EPYC; evaluation not counted"
    told = describe_time(LOG, [session(environment | {"cores": "1"})])
    assert "0.5 core-hours on 1 core of EPYC" in told


def test_time_on_other_devices_is_in_device_hours():
    environment = {"devices": "TPU v5e, TPU v5e, TPU v5e", "cores": "96", "processor": "EPYC"}
    told = describe_time(LOG, [session(environment)])
    assert "1.5 device-hours on TPU v5e, TPU v5e, TPU v5e;" in told


def test_time_on_each_machine_is_told_apart():
    records = [train_record(step, images_per_second=rate) for step, rate in ((50, 1.0), (90, 4.0), (200, 1.0))]
    small, large = ({"devices": "cpu", "cores": cores, "processor": "EPYC"} for cores in ("2", "4"))
    sessions = [session(small, end=50), session(large, start=50, end=90), session(small, start=90)]
    told = describe_time(RunLog(records, []), sessions)
    assert told.startswith("1 h 42 min in training steps, 3.2 core-hours on 2 cores of EPYC and 0.4 core-hours on 4 ")
    unused = describe_time(RunLog(records[:2], []), sessions)
    assert unused.startswith("36 min 0 s in training steps, 1 core-hour on 2 cores of EPYC and 0.4 core-hours on 4 ")
    alone = describe_time(RunLog(records[:1], []), sessions)
    assert alone == "30 min 0 s in training steps, 1 core-hour on 2 cores of EPYC; evaluation not counted"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (192.0, "3 min 12 s"), (7500.0, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_what_a_run_takes_is_expected_from_its_first_steps():
    expected = describe_expected(Config(epochs=10), 0.5, first_step=0, steps_per_epoch=12)
    assert expected.startswith("a step takes 0.5 s, so the 120 steps to take about 1 min 0 s, evaluation not counted; ")
    assert re.search(r"; \d+\.\d\d GB of memory$", expected)
    resumed = describe_expected(Config(epochs=10), 0.5, first_step=100, steps_per_epoch=12)
    assert "so the 20 steps to take about 10 s," in resumed


def test_the_steps_to_come_are_counted_at_their_resolution():
    config = Config(epochs=4, resolutions=((0.0, 32), (0.5, 64)))
    # Measured in the last step at 32 pixels, before two epochs at 64.
    assert expected_seconds(config, 1.0, side=32, step=20, steps_per_epoch=10) == 80
    assert expected_seconds(config, 1.0, side=64, step=21, steps_per_epoch=10) == 19
    assert expected_seconds(config, 1.0, side=64, step=40, steps_per_epoch=10) == 0


def test_steps_at_a_higher_resolution_are_expected_to_take_longer():
    config = Config(epochs=4, resolutions=((0.0, 32), (0.5, 64)))
    assert "the 40 steps to take about 1 min 40 s," in describe_expected(config, 1.0, first_step=0, steps_per_epoch=10)
    assert "the 20 steps to take about 20 s," in describe_expected(config, 1.0, first_step=20, steps_per_epoch=10)
    assert "the 25 steps to take about 1 min 25 s," in describe_expected(config, 1.0, first_step=15, steps_per_epoch=10)
