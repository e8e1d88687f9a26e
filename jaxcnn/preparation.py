"""What a training, a dry run and a range test do before the first step: join, load the data, build the network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax

from jaxcnn import config as settings
from jaxcnn import data
from jaxcnn.checksum import checksum_array
from jaxcnn.config import Config
from jaxcnn.data import Fingerprint
from jaxcnn.data.findings import check_findings
from jaxcnn.distributed import describe_devices
from jaxcnn.errors import UserError
from jaxcnn.leakage import check_no_leakage, describe_overlap
from jaxcnn.models.pretrained import read_pretrained
from jaxcnn.ops.compilation_cache import keep_compilations
from jaxcnn.paths import named_path
from jaxcnn.processes import check_joined, check_same, is_leader, join, lead, leader_first, share
from jaxcnn.run.flat_settings import flat_settings
from jaxcnn.run.tracking import check_clients
from jaxcnn.run.workdir import Classes, Workdir
from jaxcnn.state import TrainState
from jaxcnn.teachers import check_teachers
from jaxcnn.terminal import console, stage, warn
from jaxcnn.training_run import Run, initial_state, prepare
from jaxcnn.weights import Weights, read_same_weights

OWN = ("data.source", "data.archive", "data.cache_dir")
"""Settings that may differ between the processes of a run."""


def join_processes(config: Config) -> None:
    """Joins the other processes of a run. Only the leader prints, and checks that the packages of the logs are here."""
    join(config.parallel)
    with stage("starting JAX"):
        check_joined()
    lead(lambda: check_clients(config.log))
    console.quiet = console.quiet or not is_leader()


def check_same_settings(config: Config, bucket: str | None = None) -> None:
    """Raises a `UserError` if the processes of a run were not started with the same settings."""
    given = {name: repr(value) for name, value in (("bucket", bucket), *flat_settings(config)) if name not in OWN}
    first = lead(lambda: given)
    differing = [name for name in first if given.get(name) != first[name]]
    found = share([f"{name} {given.get(name)}, process 0 with {first[name]}" for name in differing[:1]])
    for number, differences in enumerate(found):
        if differences:
            raise UserError(f"process {number} was started with {differences[0]}; give the same options to all of them")


class PreparedRun(NamedTuple):
    """A run before it has a state.

    Attributes:
      run: settings, data, network and optimizer.
      classes: its classes.
      fingerprint: returns the fingerprint of its split.
      findings: what is odd about its pictures.
    """

    run: Run
    classes: Classes
    fingerprint: Callable[[], Fingerprint]
    findings: Sequence[str]


def prepare_run(config: Config, folder: Workdir) -> PreparedRun:
    """Loads the data of a run and builds its network, after all checks that need no state.

    Args:
      config: the settings.
      folder: the workdir, which may hold a run to resume.

    Raises:
      UserError: the settings or the data do not fit the run in the workdir, or cannot be trained with.
    """
    # What can be checked without the pictures comes first: they may have to be downloaded and decoded.
    config = _resolve_together(config, folder)
    lead(partial(folder.check_resumable, config))
    check_teachers(config.distill)
    is_begun = lead(lambda: folder.has_run)
    with stage(f"reading the pictures of {config.data.source}"):
        dataset = leader_first(partial(data.load, config.data))
    # Now what depends on them. All processes keep the pictures in the same way, whatever room their disks have.
    assert dataset.store is not None
    here = dataset.store.kind
    kind = lead(lambda: here)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, store=kind))
    if kind != here:
        dataset = data.load(config.data)
    # Machines may have copies of the pictures, and one of these may be incomplete.
    advice = f"{config.data.source} has to hold the same pictures on all machines"
    check_same("pictures", partial(_describe_split, dataset), advice=advice)
    if not is_begun:
        config = _with_fitting_batch(config, len(dataset.train))
    with stage("looking for duplicates"):
        findings = check_findings(dataset, config.data)
    keep_compilations(named_path(config.data.cache_dir, option="data.cache_dir") / "compiled")
    with stage("building the network"):
        run = prepare(config, dataset)
    # Only the leader computes the fingerprint, which reads all validation pictures.
    classes, fingerprint = _classes(run), functools.cache(run.dataset.fingerprint)
    with stage("identifying the validation pictures"):
        lead(lambda: folder.check_same_data(classes, fingerprint()))
    return PreparedRun(run, classes, fingerprint, findings)


def _describe_split(dataset: data.Dataset) -> list[str]:
    """Returns the classes and checksums of the labels, without a look at the pixels."""
    return [*dataset.names, *(checksum_array(split.labels) for split in (dataset.train, dataset.validation))]


def _resolve_together(config: Config, workdir: Workdir) -> Config:
    """Returns what `_resolve` returns in the first process, but for `OWN`: a network drive shows changes late."""
    if jax.process_count() == 1:
        return _resolve(config, workdir)
    found = settings.from_json(lead(lambda: settings.to_json(_resolve(config, workdir))))
    here = {name: getattr(config.data, name) for name in (name.removeprefix("data.") for name in OWN)}
    return dataclasses.replace(found, data=dataclasses.replace(found.data, **here))


def _resolve(config: Config, workdir: Workdir) -> Config:
    """Returns the settings with fit, crop and filter decided: by the run in the workdir, or by the initial weights."""
    config = workdir.resolve(config)
    given, pretrained = config.data, None
    # A run that is resumed has it all, and does not need the weights, which may be gone.
    is_open = given.filter is None or (given.crop is None and given.fit in (None, "crop"))
    if config.init_from and is_open:
        pretrained = read_pretrained(config.init_from)
    if pretrained is None:
        return dataclasses.replace(config, data=given.resolved())
    return dataclasses.replace(config, data=given.resolved(crop=pretrained.crop, filter=pretrained.filter))


def _with_fitting_batch(config: Config, count: int) -> Config:
    """Returns the settings with a batch of all training pictures if there are fewer than a batch has, and says so."""
    fitting = config.fit_batch(count=count, devices=jax.device_count())
    if fitting != config.batch_size:
        console.print(f"batch_size is {config.batch_size}, reduced to {fitting}: there are {count} training pictures")
    return dataclasses.replace(config, batch_size=fitting)


def _classes(run: Run) -> Classes:
    dataset = run.dataset
    return Classes(names=dataset.names, wnids=dataset.wnids, dataset=dataset.name, license=dataset.license)


def initialise(run: Run) -> tuple[Weights | None, TrainState]:
    """Returns the initial weights of a new run, if it has some, and its state before the first step.

    Raises:
      UserError: the weights cannot be read or do not fit the network, or were trained on pictures that this run holds
        out.
    """
    config = run.config
    if config.init_from is None:
        return None, initial_state(run)
    weights = read_same_weights(config.init_from)
    state = initial_state(run, weights)
    if weights.trained_on is not None:
        warning = check_no_leakage(
            run.dataset, config.data, trained_on=weights.trained_on, fingerprint=weights.pictures
        )
        if warning and is_leader():
            warn(warning)
    return weights, state


def print_start(run: Run, workdir: Workdir, *, step: int, weights: Weights | None, goes_on: bool = True) -> None:
    """Prints the data, the network, the devices, and what the session starts from, or that no step is left to take."""
    dataset = run.dataset
    console.print(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.validation):,} validation pictures, "
        f"{len(dataset.names)} classes; {_describe_store(dataset)} in {run.config.data.cache_dir}; "
        f"{run.config.model.name} on {describe_devices()}; {workdir.path}",
        soft_wrap=True,
    )
    reached = f"step {step:,} of {run.total_steps:,}"
    if step:
        console.print(f"resuming at {reached}" if goes_on else f"the run has ended at {reached}: no step left to take")
    if weights is not None:
        has_head = weights.has_head_for(run.config.model, dataset.names, dataset.wnids)
        fitted = run.config.fit_head or run.config.is_frozen
        head = "the classifier too, for the same classes" if has_head and not fitted else "with a new classifier"
        console.print(f"initial weights: {weights.source}, trained on {weights.dataset}, {head}", soft_wrap=True)
        if warning := find_overlap(run, weights):
            warn(warning)


def _describe_store(dataset: data.Dataset) -> str:
    """Describes how the pictures are kept, what they take on disk and why."""
    side, store = dataset.train.images.shape[1], dataset.store
    taken = "" if store is None else f", {store.bytes / 1e6:,.1f} MB"
    if store is None or store.kind == "decoded":
        return f"decoded to {side}x{side} pixels{taken}"
    why = f" ({store.reason})" if store.reason else ""
    return f"encoded{taken}, and decoded to {side}x{side} pixels in every epoch{why},"


def find_overlap(run: Run, weights: Weights) -> str | None:
    """Returns a warning if initial weights have probably seen the validation pictures; None otherwise."""
    return describe_overlap(run.dataset, trained_on=[training.dataset for training in weights.trainings])
