"""Trainings for `tests.bench.durability`, each with the checkpoints of one tool.

Every training has four epochs and a network of 64 kB, and resumes by itself. When an epoch begins and at the end, it
reports how many epochs are done, with a digest of all values: these are saved. The tools are used as their
documentation recommends.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 4
SIDE = 128
"""Inputs and outputs of the network."""
SECONDS = 60
"""A training that takes longer hangs."""

Report = Callable[[int, Iterable[Any]], None]
"""What a training calls with the epochs that are done, and all values in NumPy."""


def train_jaxcnn(folder: Path, report: Report) -> None:
    """The checkpoints of jaxcnn. The first one is the best, so that the last two are not all that is kept."""
    import jax
    import optax

    from jaxcnn.config import Config, DataConfig, ModelConfig
    from jaxcnn.models import registry
    from jaxcnn.optim import make_optimizer
    from jaxcnn.run.checkpoint import open_checkpoints
    from jaxcnn.state import create_state

    config = Config(data=DataConfig(image_size=8), model=ModelConfig(widths=(40,), blocks=(1,)))
    model, optimizer = registry.build(config.model, classes=3), make_optimizer(config.optim, steps=100)
    state = create_state(jax.random.key(0), model=model, optimizer=optimizer, image_size=8, averaged=False)
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.last_step is not None:
            state = checkpoints.restore(state)
        for epoch in range(int(state.step), EPOCHS):
            report(epoch, jax.tree.leaves(state))
            params = state.variables["params"]
            updates, opt_state = optimizer.update(params, state.opt_state, params)
            variables = state.variables | {"params": optax.apply_updates(params, updates)}
            state = state._replace(step=state.step + 1, variables=variables, opt_state=opt_state)
            checkpoints.save(state, metrics={"top1": 1 / (epoch + 1)})
        report(EPOCHS, jax.tree.leaves(state))


def train_orbax(folder: Path, report: Report) -> None:
    """Orbax' `CheckpointManager`, which keeps two checkpoints."""
    import jax
    import optax
    import orbax.checkpoint as ocp

    optimizer = optax.sgd(0.1, momentum=0.9)
    params = {"weights": jax.random.normal(jax.random.key(0), (SIDE, SIDE))}
    state, done = {"params": params, "optimizer": optimizer.init(params)}, 0
    with ocp.CheckpointManager(folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        if (last := manager.latest_step()) is not None:
            like = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
            state, done = manager.restore(last, args=ocp.args.StandardRestore(like)), last
        for epoch in range(done, EPOCHS):
            report(epoch, jax.tree.leaves(state))
            updates, moments = optimizer.update(state["params"], state["optimizer"])
            state = {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}
            manager.save(epoch + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
        report(EPOCHS, jax.tree.leaves(state))


def train_lightning(folder: Path, report: Report) -> None:
    """PyTorch Lightning's `ModelCheckpoint` with `save_last`, and `fit(ckpt_path="last")`."""
    import lightning
    import torch

    class Network(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(SIDE, SIDE, bias=False)

        def training_step(self, batch: Any, number: int) -> Any:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

        def on_train_epoch_start(self) -> None:
            report(self.current_epoch, self.values())

        def values(self) -> Iterator[Any]:
            yield self.layer.weight.detach().numpy()
            for moments in self.trainer.optimizers[0].state.values():
                yield moments["momentum_buffer"].numpy()

    # Lightning writes into the system's temporary folder first, and moves the file. Where that is on another file
    # system it would copy, so that a file could be cut off under its last name.
    tempfile.tempdir = str(folder)
    torch.manual_seed(0)
    network, data = Network(), torch.utils.data.TensorDataset(torch.randn(8, SIDE))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path="last")
    report(trainer.current_epoch, network.values())


def train_keras(folder: Path, report: Report, *, double: bool = False) -> None:
    """Keras' `BackupAndRestore`, on PyTorch."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class Reporter(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            report(epoch, values())

    def values() -> list[Any]:
        variables = [*network.weights, *network.optimizer.variables]
        return [keras.ops.convert_to_numpy(variable) for variable in variables]

    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((SIDE,)), keras.layers.Dense(SIDE, use_bias=False)])
    network.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    network.optimizer.build(network.trainable_variables)
    inputs = np.random.default_rng(0).normal(size=(8, SIDE)).astype(np.float32)
    backup = keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=double, delete_checkpoint=False)
    callbacks = [backup, Reporter()]
    network.fit(inputs, inputs, batch_size=4, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    report(max(EPOCHS, network._initial_epoch or 0), values())


def train_keras_double(folder: Path, report: Report) -> None:
    """Keras' `BackupAndRestore` with a second, earlier backup."""
    train_keras(folder, report, double=True)


TOOLS = {
    "jaxcnn": (train_jaxcnn, "orbax-checkpoint"),
    "orbax": (train_orbax, "orbax-checkpoint"),
    "lightning": (train_lightning, "lightning"),
    "keras": (train_keras, "keras"),
    "keras_double": (train_keras_double, "keras"),
}
"""Trainings by the name of their tool, with the package that writes the files."""


def digest(values: Iterable[Any]) -> str:
    """Returns a digest of arrays."""
    return hashlib.sha256(b"".join(np.asarray(value).tobytes() for value in values)).hexdigest()


def main() -> None:
    """Trains once in a folder, or resumes the training in each folder that standard input names, and answers.

    A training that runs once prints its reports as `saved:EPOCH:DIGEST`.
    An answer is a JSON object: `epochs`, what the training reported; `error`, the exception that ended it; and `said`,
    the lines that it printed.
    """
    name, *folders = sys.argv[1:]
    train, _ = TOOLS[name]
    if folders:
        # One system call for a line, also if Python does not buffer its output.
        train(Path(folders[0]), lambda epoch, values: os.write(1, f"saved:{epoch}:{digest(values)}\n".encode()))
        return
    warnings.simplefilter("always")
    warnings.simplefilter("ignore", DeprecationWarning)
    # What the libraries print goes to a file, below Python too.
    answers, printed = os.fdopen(os.dup(1), "w"), tempfile.TemporaryFile()  # noqa: SIM115
    for descriptor in (1, 2):
        os.dup2(printed.fileno(), descriptor)
    for line in sys.stdin:
        printed.seek(0)
        printed.truncate()
        signal.alarm(SECONDS)
        folder, epochs, error = Path(line.rstrip("\n")), [], None
        try:
            train(folder, lambda epoch, values: epochs.append((epoch, digest(values))))  # noqa: B023
        except Exception as raised:
            error = traceback.format_exception_only(raised)[-1].strip()
        signal.alarm(0)
        sys.stdout.flush(), sys.stderr.flush()
        printed.seek(0)
        said = printed.read().decode(errors="replace").replace(str(folder), "FOLDER").splitlines()
        print(json.dumps({"epochs": epochs, "error": error, "said": said}), file=answers, flush=True)


if __name__ == "__main__":
    main()
