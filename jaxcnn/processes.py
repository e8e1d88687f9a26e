"""Several processes that train one run: how they find each other, what they decide together, and how they end.

The first process leads: it alone writes to the workdir and prints. All run the same program, and call the functions of
this module in the same order. Alone, a process decides for itself and waits for nobody.
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxcnn.cli import MEMORY, TEMPORARY, explain, is_out_of_memory, print_error
from jaxcnn.commands import COMMANDS, explain_missing
from jaxcnn.config import ParallelConfig
from jaxcnn.distributed import AXES, make_mesh
from jaxcnn.errors import TemporaryError, UserError
from jaxcnn.terminal import stage

LOST = TEMPORARY
"""Exit status of a process that ends because another one has ended: start all of them again."""
HEARTBEAT_SECONDS = 10
"""Time without a sign of life after which a process counts as ended, and all others end as well."""
GRACE_SECONDS = 60
"""Time for which JAX waits longer for the others than this process does, which then ends with one line."""
WATCH_SECONDS = 1
"""Time between two looks for a process that has failed."""
END_SECONDS = 3
"""Time for a process to end with the error that another one has ended with, before it ends because of that one."""
MEET_SECONDS = 9
"""Time in which all processes meet that end."""
SEVERAL = 0
"""Stands for a number of tasks that is not known; it may be one."""

_LAUNCHERS = (
    ("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"),
    # A batch script, which is no task, has this number too, but is in no step.
    ("Slurm", "SLURM_NTASKS", "SLURM_STEP_NODELIST"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MPI", "PMI_SIZE", "PMI_RANK"),
    ("MPI", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("torchrun", "WORLD_SIZE", "RANK"),
)
"""Launchers, the variable with the number of their tasks, and another variable that a task has."""
_FAILURE = "jaxcnn/failure"
"""Name under which the first process that fails leaves a line for the others."""
_calls = itertools.count()
_joined = threading.Event()
_ending = threading.Lock()
"""Held by the thread that ends the process."""


class MissingProcessError(TemporaryError):
    """Other processes of the run have not started in time."""


def join(config: ParallelConfig) -> None:
    """Joins the other processes of the run, if there are any. Must come before anything that starts JAX's backend.

    Raises:
      MissingProcessError: others have not started within `config.start_seconds`.
      UserError: a launcher has started several tasks that cannot be joined.
    """
    if jax.distributed.is_initialized():
        return
    launcher, tasks = _find_launcher()
    address: dict[str, Any] = {}
    if config.coordinator not in (None, "auto"):
        address = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
    elif config.coordinator is None and tasks == 1:
        return
    # The processes decide themselves when they stop; JAX would take over SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    if failure := _initialize(address, seconds=config.start_seconds):
        where = "process" if tasks == 1 else f"task of {launcher}"
        where += f", which started {tasks}," if tasks > 1 else ""
        reason = next(iter(str(failure).splitlines()), type(failure).__name__)
        raise UserError(
            f"this {where} cannot join the others ({reason}); give each --parallel.coordinator HOST:PORT "
            "--parallel.num_processes N --parallel.process_id I"
        ) from failure
    _joined.set()
    _watch_others()


def _initialize(address: Mapping[str, Any], *, seconds: int) -> Exception | None:
    """Starts JAX's connection to the other processes, and waits for all of them; returns the error of a failure.

    Raises:
      MissingProcessError: they have not all started in time.
    """
    failures: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                **address,
                initialization_timeout=seconds + GRACE_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:  # Each launcher has its own kinds.
            failures.append(error)

    # In a thread: JAX answers no signal while it waits, and aborts the process in the end.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    with stage(f"waiting for the other processes, at most {seconds} s"):
        thread.join(seconds)
    if thread.is_alive():
        raise MissingProcessError(
            f"the processes of this run have not all started within {seconds} s; start all of them again, or give them "
            "more time with --parallel.start_seconds"
        )
    return next(iter(failures), None)


def check_joined() -> None:
    """Raises a `UserError` if this process is one of several that JAX knows of, but that have not been joined."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"this is one of {jax.process_count()} hosts of a slice; start the same command on every one of them, "
            "with --parallel.coordinator auto"
        )


def is_leader() -> bool:
    """Returns whether this process writes and prints."""
    return jax.process_index() == 0


def lead[T](function: Callable[[], T]) -> T:
    """Calls a function in the leader alone, and returns in every process what it returned there.

    Args:
      function: returns what JSON can express.

    Raises:
      UserError: the function raised it, in the leader.
    """
    if jax.process_count() == 1:
        return function()
    key = f"jaxcnn/{next(_calls)}"
    if is_leader():
        return _publish(key, function)
    found: T = _read(key)
    return found


def leader_first[T](function: Callable[[], T]) -> T:
    """Calls a function in every process, in the leader before the others, which find what it left on the disk.

    Raises:
      UserError: the function raised it in any process; the others raise the first of them.
    """
    if jax.process_count() == 1:
        return function()
    results: list[T] = []

    def call() -> None:
        results.append(function())

    call_number, own = next(_calls), jax.process_index()
    keys = [f"jaxcnn/{call_number}/{process}" for process in range(jax.process_count())]
    if not is_leader():
        _read(keys[0])
    _publish(keys[own], call)
    for key in keys:
        _read(key)
    return results[0]


def share[T](value: T) -> list[T]:
    """Returns the values of all processes in their order; each calls it with what JSON can express."""
    if jax.process_count() == 1:
        return [value]
    key = f"jaxcnn/{next(_calls)}"
    _publish(f"{key}/{jax.process_index()}", lambda: value)
    return [_read(f"{key}/{process}") for process in range(jax.process_count())]


def check_same(what: str, describe: Callable[[], object], *, advice: str) -> None:
    """Raises a `UserError` in every process if one of them has something else than the first.

    Args:
      what: names it in the message.
      describe: returns what has to be the same, as JSON can express it; not called alone.
      advice: what to do.
    """
    if jax.process_count() == 1:
        return
    value = describe()
    first = lead(lambda: value)
    for number, is_same in enumerate(share(value == first)):
        if not is_same:
            raise UserError(f"process {number} has other {what} than process 0; {advice}")


class Wishes(NamedTuple):
    """What a process would do after a step.

    Attributes:
      stop: number of the signal that asks to stop; 0 without a signal.
      save: save a checkpoint.
      log: record the metrics.
    """

    stop: int
    save: bool
    log: bool


def propose(wishes: Callable[[], Wishes]) -> Callable[[], Wishes]:
    """Asks all processes what to do after a step.

    With several, their wishes are joined on the devices, in the queue before the step that is dispatched next. So
    nothing waits for that step.

    Args:
      wishes: what this process wishes; of those to save and to log, the leader's count.

    Returns:
      A function that returns what is to be done, the same in every process.
    """
    if jax.process_count() == 1:
        return wishes
    stop, save, log = wishes()
    joined = _join_by_maximum(np.array([stop, save and is_leader(), log and is_leader()], np.int32))

    def decided() -> Wishes:
        stop, save, log = np.asarray(joined)
        return Wishes(int(stop), bool(save), bool(log))

    return decided


@contextlib.contextmanager
def ending_together(prog: str, *, memory: str = MEMORY) -> Iterator[None]:
    """Prints an error in the context, and ends all processes of the run if there are several; else the error is raised.

    This one ends without the exit of the interpreter, in which JAX would wait for the others, which may be stuck or
    gone. The status is that of `cli.run`, or `LOST` if another process of the run has ended. The others print which
    process has ended and why, and end with `LOST`, wherever they are, unless they soon fail as well.

    Args:
      prog: what the messages call the command.
      memory: what to do if there is not enough memory.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        with _ending:
            reason, status = _report(prog, error, memory=memory)
            if _joined.is_set() and not _explain_loss(error):
                _tell_others(f"{prog}: process {_state().process_id} of this run has ended: {reason}")
                _wait_to_end()
            os._exit(status)


def _report(prog: str, error: BaseException, *, memory: str) -> tuple[str, int]:
    """Prints an error; returns what the other processes print of it, and the exit status."""
    match error:
        case SystemExit():
            status = error.code if isinstance(error.code, int) else 1
            reason = f"exit status {status}"
        case BrokenPipeError():  # Nobody reads any more.
            reason, status = "nobody reads what it prints", 1
        case _ if found := _explain_loss(error) or explain(error, memory=memory):
            reason, status = found
            print_error(f"{prog}: {reason}")
        case _ if missing := explain_missing(error, COMMANDS["train"]):
            reason, status = missing, 2
            print_error(f"{prog}: {reason}")
        case _:
            reason, status = f"{type(error).__name__}; its own output says more", 1
            traceback.print_exception(error)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it is closed.
        with contextlib.suppress(OSError):
            stream.flush()
    return reason, status


def _explain_loss(error: BaseException) -> tuple[str, int] | None:
    """Does what `cli.explain` does for the error of a process that misses another one; None for other errors."""
    if isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        return None
    found = next(filter(_is_of_lost_process, _chain(error)), None)
    if found is None or is_out_of_memory(found):
        return None
    reason = next(iter(str(found).splitlines()), type(found).__name__)[:200]
    return f"another process of this run has ended ({reason}); start all of them again to resume", LOST


def _tell_others(line: str) -> None:
    """Leaves a line for the other processes, which print it and end; see `_watch`."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another process has failed before.
        _client().key_value_set(_FAILURE, line)


def _wait_to_end() -> None:
    """Waits for the other processes, which end as well, the leader a little longer: without it they abort."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().wait_at_barrier("jaxcnn/end", 1000 * MEET_SECONDS)
        if _state().process_id == 0:
            time.sleep(0.5)


def _watch_others() -> None:
    """Starts to watch for a process that fails, until the interpreter exits."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(stop,), name="watch", daemon=True)

    def end() -> None:
        stop.set()
        thread.join()

    # This comes before JAX closes the connection.
    atexit.register(end)
    thread.start()


def _watch(stop: threading.Event) -> None:
    """Ends this process if another one has failed. Its main thread may wait for that one in compiled code, for ever."""
    line = None
    while line is None:
        if stop.wait(WATCH_SECONDS):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # No process has failed.
            line = _client().key_value_try_get(_FAILURE)
    if stop.wait(END_SECONDS):
        return
    # The main thread may close what takes long, on its way out with the same error.
    while isinstance(sys._current_exceptions().get(threading.main_thread().ident or 0), UserError):
        if stop.wait(WATCH_SECONDS):
            return
    with _ending:
        print_error(line)
        _wait_to_end()
        os._exit(LOST)


def _is_of_lost_process(error: BaseException) -> bool:
    """Returns whether an error is what JAX's runtime and Orbax raise when another process has ended.

    Some functions of the runtime raise a ValueError. Orbax raises a TimeoutError, which has no number of the system.
    """
    if isinstance(error, TimeoutError):
        return error.errno is None
    return isinstance(error, jax.errors.JaxRuntimeError) or re.match(r"[A-Z_]+: ", str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and the errors behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find_launcher() -> tuple[str, int]:
    """Returns the launcher of this process and the number of its tasks, maybe `SEVERAL`; 1 without a launcher."""
    for name, size, other in _LAUNCHERS:
        if size in os.environ and other in os.environ and os.environ[size].isdigit():
            return name, int(os.environ[size])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1:
        return "a TPU slice", len(hosts)
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return "Kubernetes", SEVERAL
    return "", 1


def _publish[T](key: str, function: Callable[[], T]) -> T:
    """Calls a function, and publishes what it returned, or the `UserError` that it raised."""
    try:
        result = function()
    except UserError as error:
        _client().key_value_set(key, json.dumps({"error": str(error), "kind": type(error).__name__}))
        raise
    _client().key_value_set(key, json.dumps({"result": result}))
    return result


def _read(key: str) -> Any:
    """Waits for what another process has published; raises its `UserError`."""
    while True:
        try:
            found = json.loads(_client().blocking_key_value_get(key, 1000))
            break
        except jax.errors.JaxRuntimeError as error:
            # In between Python answers signals.
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    if "error" in found:
        kinds: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
        raise next(kind for kind in kinds if kind.__name__ == found["kind"])(found["error"])
    return found["result"]


def _client() -> Any:
    """The client of JAX's coordination service, through which the processes exchange short texts."""
    return _state().client


def _state() -> Any:
    """What JAX knows of the processes before it starts the devices."""
    from jax._src.distributed import global_state

    return global_state


def _join_by_maximum(values: np.ndarray) -> jax.Array:
    """Returns the largest of the values of all processes, by position."""
    mesh = make_mesh()
    assert mesh is not None
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((AXES,), ()))  # type: ignore[no-untyped-call]
    shape = (jax.device_count(), *values.shape)
    own = jax.make_array_from_callback(shape, split, lambda _: values[None])
    joined: jax.Array = jax.jit(_maximum, out_shardings=whole)(own)
    return joined


def _maximum(values: jax.Array) -> jax.Array:
    return values.max(0)
