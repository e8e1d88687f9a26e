"""The line that says what a run takes, measured in its first steps."""

import pytest

from jaxcnn.run import progress
from jaxcnn.run.progress import open_progress


@pytest.mark.parametrize(
    ("seconds", "printed_after"),
    [
        ([30, 20, 1, 1, 1, 1], 5),  # The first two are compiled.
        ([30, 20, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 8),
        ([30, 20, 9, 9, 9], 5),
        ([30, 20, 0.5, 0.5], None),
    ],
)
def test_the_steps_after_the_compiled_ones_are_measured_once(monkeypatch, capsys, seconds, printed_after):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    printed = None
    with open_progress(total_steps=10, first_step=0, epochs=2, expect=lambda mean: f"{mean:g} s") as shown:
        for number, step in enumerate(seconds, start=1):
            clock[0] += step
            shown.count_step()
            said = capsys.readouterr().err
            if said:
                assert printed is None
                printed = number
                assert said == f"{seconds[-1]:g} s\n"
    assert printed == printed_after
