"""The line that says what a run takes, measured in its first steps."""

import pytest
from stages import take_long

from jaxcnn import terminal
from jaxcnn.run import progress
from jaxcnn.run.metrics_log import TrainRecord
from jaxcnn.run.progress import open_progress


@pytest.mark.parametrize(
    ("seconds", "printed_after"),
    [
        ([30, 20, 1, 1, 1, 1], 5),  # The first two are compiled.
        ([30, 20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 8),
        ([30, 20, 2.5, 2.5, 2.5], 5),
        ([30, 20, 9, 9, 9], 3),  # One long step says enough.
        ([30, 20, 0.5, 0.5], None),
    ],
)
def test_the_steps_after_the_compiled_ones_are_measured_once(monkeypatch, capsys, seconds, printed_after):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    printed = None
    with open_progress(
        total_steps=10, first_step=0, epochs=2, expect=lambda mean: f"{mean:g} s", to_go=lambda record, pace: 0.0
    ) as shown:
        for number, step in enumerate(seconds, start=1):
            clock[0] += step
            shown.count_step()
            said = capsys.readouterr().err
            if said:
                assert printed is None
                printed = number
                assert said == f"{seconds[-1]:g} s\n"
    assert printed == printed_after


def test_what_is_done_in_place_of_steps_is_not_measured(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with open_progress(
        total_steps=10, first_step=0, epochs=2, expect=lambda mean: f"{mean:g} s", to_go=lambda record, pace: 0.0
    ) as shown:
        for number in range(5):
            with shown.paused():
                clock[0] += 5
                with shown.doing("evaluating"):
                    clock[0] += 600
            with shown.doing("compiling", first="side"):
                clock[0] += 0 if number else 300
            # Only the first of these steps takes the place of steps.
            with shown.doing("taking the first step", first="step"):
                clock[0] += 30 if number == 0 else 1
            shown.count_step()
    assert capsys.readouterr().err == "1 s\n"


def test_without_a_bar_there_is_a_line_a_minute(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with open_progress(total_steps=1000, first_step=0, epochs=4, expect=str, to_go=lambda record, pace: 0.0) as shown:
        for seconds in (3, 50, 8, 30, 31):
            clock[0] += seconds
            shown.update(
                TrainRecord(step=10, epoch=0.5, loss=1.25, top1=0.5, learning_rate=0.1, images_per_second=1234.5)
            )
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", 1,23")[0] for line in lines] == ["epoch 0.50/4: loss 1.250"] * 2


def test_the_time_to_go_leaves_out_what_is_no_step(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with open_progress(
        total_steps=1000, first_step=0, epochs=4, expect=str, to_go=lambda record, pace: (1000 - record.step) * pace
    ) as shown:
        # Two records with an evaluation of ten minutes between them.
        for step, rate, resolution, seconds in (
            (10, 10.0, 32, 2),
            (20, 5.0, 32, 600),
            (30, 2.0, 64, 60),
            (1000, 2.0, 64, 60),
        ):
            clock[0] += seconds
            shown.update(
                TrainRecord(
                    step=step,
                    epoch=1.0,
                    loss=1.0,
                    top1=0.5,
                    learning_rate=0.1,
                    resolution=resolution,
                    images_per_second=rate,
                )
            )
    said = [line.rpartition("images/s")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == [", 2 min 27 s of steps to go", ", 8 min 5 s of steps to go", ""]


def test_in_training_a_stage_is_announced_once(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SILENT_SECONDS", 0.1)
    with open_progress(total_steps=10, first_step=0, epochs=2, expect=str, to_go=lambda record, pace: 0.0) as shown:
        for side in (32, 32, 48):
            take_long(shown.doing(f"compiling for {side}", first=side))
        for _ in range(2):
            take_long(shown.doing("evaluating"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.endswith("...")]
    assert said == ["compiling for 32 ...", "compiling for 48 ...", "evaluating ..."]
