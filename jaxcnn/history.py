"""The history of a run up to a step: its accuracies, and what is left to do after them."""

from collections.abc import Sequence

from jaxcnn.processes import lead
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.run.metrics_log import MetricsLog, is_stalled
from jaxcnn.training_run import Run


def read_history(log: MetricsLog, step: int) -> list[float]:
    """Returns the validation top-1 accuracies of a run up to a step, in every process as the leader has logged them."""
    return lead(lambda: [record.top1 for record in log.read().validation if record.step <= step])


def lacks_evaluation(run: Run, checkpoints: Checkpoints, *, step: int) -> bool:
    """Returns whether a run was stopped while it evaluated the epoch that ends with a step, its last one."""
    is_end = 0 < step <= run.total_steps and step % run.steps_per_epoch == 0
    return is_end and checkpoints.lacks_metrics(step)


def has_steps_left(run: Run, history: Sequence[float], *, step: int) -> bool:
    """Returns whether a run goes on after a step: it has neither taken all of its steps nor ended early.

    Args:
      run: the run.
      history: validation top-1 accuracies up to the step, from `read_history`.
      step: steps taken so far.
    """
    return step < run.total_steps and not is_stalled(history, run.config.early_stopping)
