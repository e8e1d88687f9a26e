"""The evaluation of a run in training: its variables on its validation pictures."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from jaxcnn.distributed import fetch_rows, shard_batch
from jaxcnn.evaluation import measure
from jaxcnn.metrics import Evaluation
from jaxcnn.state import Variables
from jaxcnn.step import eval_step
from jaxcnn.training_run import Run


def evaluate_variables(
    run: Run, variables: Variables, *, before_batch: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluates variables on all validation pictures, in the precision of the run and without calibration.

    Every process computes its share, and has the result.

    Args:
      run: the run.
      variables: parameters and batch statistics.
      before_batch: is called before each batch; its errors end the evaluation.
    """

    def logits(images: UInt8[np.ndarray, "batch side side 3"]) -> Float32[np.ndarray, "batch classes"]:
        before_batch()
        return fetch_rows(eval_step(variables, shard_batch(images, run.mesh), model=run.model, mesh=run.mesh))

    return measure(
        logits,
        run.dataset.validation,
        classes=len(run.dataset.names),
        batch_size=run.config.batch_size,
        rows=run.rows,
    )
