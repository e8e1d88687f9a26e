"""The head of a new run, fitted to the features of its initial weights before the first step (Kumar et al. 2022)."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Float32

from jaxcnn.data.batches import eval_batches, eval_positions
from jaxcnn.distributed import fetch_rows, gather_rows, place_state, same_everywhere, shard_batch
from jaxcnn.errors import UserError
from jaxcnn.linear_head import LinearHead, fit_head
from jaxcnn.models import registry
from jaxcnn.models.features import group_widths
from jaxcnn.ops.precision import exact_products
from jaxcnn.state import TrainState, Variables, start_from
from jaxcnn.step import feature_step
from jaxcnn.terminal import stage, with_bar
from jaxcnn.training_run import Run


def start_with_fitted_head(run: Run, state: TrainState) -> tuple[TrainState, LinearHead]:
    """Fits the head of the network to the training pictures; everything else stays as it is.

    Validation pictures have no influence. A network with a normalisation behind its last layer is refused.

    Args:
      run: the run.
      state: the state before the first step, with the initial weights in it; consumed.

    Returns:
      The state with the head in it, and how the head was chosen.

    Raises:
      UserError: the network has another head than one linear layer.
    """
    params = state.variables["params"]
    if "classifier" not in params or "classifier_norm" in params:
        raise UserError(
            f"the head of the network {run.config.model.name!r} is more than a linear layer and cannot be fitted; "
            "leave out --freeze and --fit_head"
        )
    train = run.dataset.train
    with stage(f"computing the features of {len(train):,} training pictures"):
        features = compute_features(run, state.variables)
    with stage("fitting the classifier"):
        head = fit_head(
            features,
            train.labels,
            classes=len(run.dataset.names),
            groups=group_widths(_build_exact(run), state.variables, train.shown[:1]),
            alike=None if train.facts is None else np.asarray(train.facts["alike"]),
            balanced=run.config.balance,
        )
    # Other machines may round otherwise.
    filled = {**params, "classifier": same_everywhere({"bias": head.bias, "kernel": head.kernel})}
    return start_from(state, {**state.variables, "params": filled}), head


def compute_features(run: Run, variables: Variables) -> Float32[np.ndarray, "n features"]:
    """Computes the features of all training pictures in float32, each shown as in evaluation.

    Every process computes its share, and has all of them.
    """
    config, train, variables = run.config, run.dataset.train, place_state(variables, run.mesh)
    compute = partial(feature_step, variables, model=_build_exact(run), mesh=run.mesh)
    batches = with_bar(
        eval_batches(train, batch_size=config.batch_size, rows=run.rows),
        "features of the training pictures",
        total=-(-len(train) // config.batch_size),
    )
    with exact_products():
        found = [fetch_rows(compute(shard_batch(batch.images, run.mesh)))[batch.mask] for batch in batches]
    features = np.concatenate(found)
    if run.rows is None:
        return features
    return gather_rows(eval_positions(len(train), batch_size=config.batch_size, rows=run.rows), features)


def _build_exact(run: Run) -> registry.Network:
    """Builds the network of a run to compute in float32, whatever it is trained in."""
    return registry.build_here(
        dataclasses.replace(run.config.model, precision="float32"), classes=len(run.dataset.names)
    )
