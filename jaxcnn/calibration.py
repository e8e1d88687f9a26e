"""Probabilities that mean what they say: one temperature for all logits, fitted on the validation pictures."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32
from scipy.optimize import minimize_scalar

from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.metrics import measure_reliability, score

LOWEST, HIGHEST = 0.05, 20.0
"""Between these temperatures one is looked for."""
_PRIOR = 2.0
"""How strongly the temperature is held to 1: as much as about this many pictures that the model is unsure of."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature of a checkpoint, and what it does to the calibration error.

    Attributes:
      step: of the checkpoint.
      temperature: what its logits are to be divided by.
      count: pictures that it was fitted on.
      ece_before: expected calibration error on them without it.
      ece_after: the same with it, where each half of the pictures has the temperature fitted on the other half.
    """

    step: int
    temperature: float
    count: int
    ece_before: float
    ece_after: float


def calibrate(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"], *, step: int) -> Calibration:
    """Fits the temperature of a checkpoint to pictures that it was not trained on."""
    return Calibration(
        step=step,
        temperature=fit_temperature(logits, labels),
        count=len(labels),
        ece_before=_calibration_error(logits, labels),
        ece_after=_calibration_error(cross_fit(logits, labels), labels),
    )


def fit_temperature(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> float:
    """The temperature of the softmax under which the labels are most likely (Guo et al. 2017).

    Few pictures, or pictures that are all classified right, would send it to any extreme. A Gamma distribution about 1
    is assumed for its inverse beforehand, which some hundreds of pictures outweigh. The sum to minimise is convex in
    the inverse, so its minimum lies between 1 and that of the likelihood alone: the cross-entropy never rises.

    Args:
      logits: finite; there may be none, which gives 1.
      labels: in [0, classes).
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1).sum()

    def cost(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        scaled = inverse * shifted
        loss = np.log(np.exp(scaled, out=scaled).sum(axis=1)).sum() - inverse * own
        return float(loss + _PRIOR * (inverse + log_temperature))

    found = minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(found.x) if found.fun < cost(0.0) else 1.0


def cross_fit(
    logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n classes"]:
    """The logits, each half of them divided by the temperature that fits the other half.

    So nothing is measured on what it was fitted to. The halves are random, the same every time, and have as many
    pictures of each class, give or take one.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    scaled = logits.copy()
    for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        scaled[half] /= fit_temperature(logits[other], labels[other])
    return scaled


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Writes the record as JSON.

    Raises:
      UserError: it cannot be written.
    """
    try:
        write_atomically(path, json.dumps(dataclasses.asdict(calibration), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"the calibration cannot be written to {path}: {error.strerror}") from error


def read_calibration(path: Path, *, step: int) -> Calibration | None:
    """The record of a checkpoint; None if there is none, or it is of another step.

    Raises:
      UserError: the record is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        kinds = {each.name: each.type for each in dataclasses.fields(Calibration)}
        found = Calibration(**{name: kind(value[name]) for name, kind in kinds.items()})  # type: ignore[operator]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    if not LOWEST <= found.temperature <= HIGHEST:
        raise _damaged(path, f"its temperature is {found.temperature}, not from {LOWEST} to {HIGHEST:g}")
    return found if found.step == step else None


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged ({how}); remove it and run the training again, which only writes it anew")


def _calibration_error(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> float:
    outcomes = score(logits, labels, np.ones(len(labels), bool))
    return measure_reliability(outcomes.confidence, outcomes.rank == 0).error
