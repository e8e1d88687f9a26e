"""Temperature scaling: one factor for all logits, fitted on the validation pictures (Guo et al. 2017).

Calibrated probabilities can be taken at their word: of the predictions with probability .8, about .8 are right. The
temperature changes no prediction.

    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature)
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from jaxcnn.checksum import ChecksumError, seal, unseal
from jaxcnn.disk import write_atomically
from jaxcnn.errors import UserError
from jaxcnn.metrics import measure_reliability, score
from jaxcnn.typed_json import decode

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of a temperature."""
_PRIOR = 2.0
"""Strength of the prior that holds the temperature near 1, in pictures that the model is unsure of."""
AT_ONCE = 2**20
"""Logits that are computed with at once, in float64: copies of all of them could take several times the memory."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature of a checkpoint, and its effect on the calibration error.

    Attributes:
      step: training step of the checkpoint.
      temperature: divisor of its logits.
      count: number of pictures that the temperature was fitted on.
      ece_before: expected calibration error on these pictures without temperature, from 0 to 1.
      ece_after: expected calibration error by cross-fitting: each half of the pictures is scaled by the temperature
        that was fitted on the other half.
    """

    step: int
    temperature: float
    count: int
    ece_before: float
    ece_after: float


def calibrate(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"], *, step: int) -> Calibration:
    """Fits the temperature of a checkpoint, and measures its effect.

    Args:
      logits: float32 [n, classes], finite, of pictures that the checkpoint was not trained on.
      labels: true classes, int32 [n].
      step: training step of the checkpoint.
    """
    return Calibration(
        step=step,
        temperature=fit_temperature(logits, labels),
        count=len(labels),
        ece_before=_calibration_error(logits, labels),
        ece_after=_calibration_error(cross_fit(logits, labels), labels),
    )


def fit_temperature(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> float:
    """Fits the temperature of the softmax by maximum likelihood (Guo et al. 2017), with a prior.

    The likelihood alone would take the temperature to an extreme for few pictures, or for pictures that are all
    classified correctly. Its inverse therefore has a Gamma prior with its mode at 1, which some hundreds of pictures
    outweigh. The objective is convex in the inverse, so its minimum lies between 1 and that of the likelihood: the
    cross-entropy of the pictures never rises.

    Args:
      logits: float32 [n, classes], finite.
      labels: true classes, int32 [n], from 0 to classes - 1.

    Returns:
      The divisor of the logits, from `LOWEST` to `HIGHEST`; 1 if there are no pictures.
    """
    from scipy.optimize import minimize_scalar

    # Without the largest logit of each picture, so that no exponential overflows.
    largest = logits.max(axis=1, keepdims=True)
    own = (np.take_along_axis(logits, labels[:, None], axis=1).astype(np.float64) - largest).sum()

    # Negative log likelihood and prior. The search is over the logarithm, where the bounds are symmetric about 1.
    def cost(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        loss = -inverse * own
        for rows in _parts(logits):
            scaled = inverse * (logits[rows].astype(np.float64) - largest[rows])
            loss += np.log(np.exp(scaled, out=scaled).sum(axis=1)).sum()
        return float(loss + _PRIOR * (inverse + log_temperature))

    # The search tolerates a small error, which must not make a perfect temperature of 1 worse.
    found = minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(found.x) if found.fun < cost(0.0) else 1.0


def cross_fit(
    logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n classes"]:
    """Divides each half of the logits by the temperature that was fitted on the other half.

    What is measured on the result was not fitted on the same pictures. The halves are random, but always the same for
    the same labels, and stratified: their numbers of pictures of a class differ by at most one.

    Args:
      logits: float32 [n, classes], finite.
      labels: true classes, int32 [n].

    Returns:
      Scaled logits, float32 [n, classes], in the order of the arguments.
    """
    # Sorted by class in random order, every second picture goes to the same half.
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    scaled = logits.copy()
    for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        scaled[half] /= fit_temperature(logits[other], labels[other])
    return scaled


def keep_every(batches: Iterable[Float32[np.ndarray, "_ classes"]], every: int) -> Float32[np.ndarray, "n classes"]:
    """Returns the first row of all batches together and every `every`-th one after it, without holding the others."""
    found, seen = [], 0
    for rows in batches:
        found.append(rows[-seen % every :: every].copy())
        seen += len(rows)
    return np.concatenate(found)


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration as JSON.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        write_atomically(path, json.dumps(seal(dataclasses.asdict(calibration)), indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"the calibration cannot be written to {path}: {error.strerror}; run again to write it"
        ) from error


def read_calibration(path: Path, *, step: int) -> Calibration | None:
    """Reads the calibration of a checkpoint.

    Args:
      path: the file that `write_calibration` wrote.
      step: training step of the checkpoint.

    Returns:
      The calibration; None if there is no file, or if it belongs to another step.

    Raises:
      UserError: the file cannot be read or is not a calibration.
    """
    try:
        found = decode(Calibration, unseal(json.loads(path.read_text(encoding="utf-8"))), "calibration")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ChecksumError, UserError) as error:
        raise _damaged(path, str(error)) from error
    if not LOWEST <= found.temperature <= HIGHEST:
        raise _damaged(path, f"its temperature is {found.temperature}, outside of {LOWEST} to {HIGHEST:g}")
    return found if found.step == step else None


def _damaged(path: Path, how: str) -> UserError:
    return UserError(f"{path} is damaged ({how}); remove it and run the training again, which only rewrites this file")


def _calibration_error(logits: Float32[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> float:
    parts = [score(logits[rows], labels[rows], np.ones(len(labels[rows]), bool)) for rows in _parts(logits)]
    confidence, rank = (np.concatenate([getattr(part, name) for part in parts]) for name in ("confidence", "rank"))
    return measure_reliability(confidence, rank == 0).error


def _parts(logits: Float32[np.ndarray, "n classes"]) -> Iterator[slice]:
    """Yields the rows of successive parts of at most `AT_ONCE` logits, or of one row each."""
    count = max(AT_ONCE // logits.shape[1], 1)
    for start in range(0, len(logits), count):
        yield slice(start, start + count)
