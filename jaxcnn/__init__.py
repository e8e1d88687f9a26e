"""Train image classifiers with JAX and Flax, from pictures to an ONNX file.

`train` runs a whole training as `python -m jaxcnn.train` does, from a `Config`, which `presets` makes. `load` opens its
workdir, or the ONNX file that it exported, as a `Classifier`. `evaluate` measures one on labelled pictures.

A training loop of your own stands between `begin` and `conclude`, where `train` calls `fit`. It takes its steps with
`take_step`, on batches from `train_batches`, and records what it measures as a `TrainRecord` or a `ValidationRecord`.

Whatever the user can correct is raised as a `UserError`, whose message says what is wrong, where, and what to do.
"""

import importlib
import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any

from jaxcnn.version import __version__ as __version__

if TYPE_CHECKING:
    from jaxcnn import presets
    from jaxcnn.classifier import Classifier, load
    from jaxcnn.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig
    from jaxcnn.data import train_batches
    from jaxcnn.divergence import check_finite
    from jaxcnn.errors import UserError
    from jaxcnn.evaluation import evaluate
    from jaxcnn.loop import fit
    from jaxcnn.metrics import Evaluation
    from jaxcnn.prediction import ClassProbability, Prediction
    from jaxcnn.run.metrics_log import TrainRecord, ValidationRecord
    from jaxcnn.run_step import take_step
    from jaxcnn.state import TrainState
    from jaxcnn.training import begin, conclude, train
    from jaxcnn.training_run import Run
    from jaxcnn.validation import evaluate_variables

# onnxruntime would send usage data to Microsoft, and reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


# Before the arguments stands MODULE of `python -m MODULE`, or the path of the console command.
_command = os.path.basename("".join(sys.orig_argv[-len(sys.argv) :][:1]))
_print_error = sys.excepthook


def _report_error(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """Reports an error that ends `python -m MODULE`: in one line if a package that it needs is not installed."""
    from jaxcnn.commands import COMMANDS, explain_missing

    for command in COMMANDS.values():
        if command.module == _command and (reason := explain_missing(error, command)):
            print(f"python -m {_command}: {reason}", file=sys.stderr)
            sys.exit(2)
    _print_error(kind, error, trace)


# Commands import this package first; other programs are left as they are.
if _command == "export" or _command.partition(".")[0] == "jaxcnn":
    # A package may be missing before `cli.run`, which reports other errors.
    sys.excepthook = _report_error
    # Until `cli.run`, Ctrl-C ends them at once, without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

__all__ = [
    "AugmentConfig",
    "ClassProbability",
    "Classifier",
    "Config",
    "DataConfig",
    "Evaluation",
    "ModelConfig",
    "OptimConfig",
    "Prediction",
    "Run",
    "TrainRecord",
    "TrainState",
    "UserError",
    "ValidationRecord",
    "begin",
    "check_finite",
    "conclude",
    "evaluate",
    "evaluate_variables",
    "fit",
    "load",
    "presets",
    "take_step",
    "train",
    "train_batches",
]

_MODULES = {
    "classifier": ("Classifier", "load"),
    "config": ("AugmentConfig", "Config", "DataConfig", "ModelConfig", "OptimConfig"),
    "data": ("train_batches",),
    "divergence": ("check_finite",),
    "errors": ("UserError",),
    "evaluation": ("evaluate",),
    "loop": ("fit",),
    "metrics": ("Evaluation",),
    "prediction": ("ClassProbability", "Prediction"),
    "run.metrics_log": ("TrainRecord", "ValidationRecord"),
    "run_step": ("take_step",),
    "state": ("TrainState",),
    "training": ("begin", "conclude", "train"),
    "training_run": ("Run",),
    "validation": ("evaluate_variables",),
}
"""The public names of each module. They are imported at first use: `import jaxcnn` alone takes no time."""


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("jaxcnn.presets")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"jaxcnn.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
