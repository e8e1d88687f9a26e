"""Silences what Orbax logs and reports besides the first error that it raises."""

import inspect
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_orbax_logs() -> Iterator[None]:
    """Drops what Orbax logs in the context: a traceback for every part that fails, although it raises the first error.

    Orbax logs through the loggers of absl and asyncio, which belong to the whole program: the records of other threads
    are kept, and the filters are removed afterwards. Only threads that Orbax leaves behind after a failure, and that
    may fail later, stay without logs.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    others = set(threading.enumerate()) - {threading.current_thread()}

    def of_others(_: logging.LogRecord) -> bool:
        return threading.current_thread() in others

    for logger in loggers:
        logger.addFilter(of_others)
    hook = sys.unraisablehook
    _drop_late_errors()
    try:
        yield
        sys.unraisablehook = hook
    except Exception:
        left = set(threading.enumerate()) - others - {threading.current_thread()}
        for logger in loggers if left else ():
            logger.addFilter(lambda _: threading.current_thread() not in left)
        raise
    finally:
        for logger in loggers:
            logger.removeFilter(of_others)


def _drop_late_errors() -> None:
    """Drops what Orbax reports besides the first error, from operations that it has begun and does not wait for.

    Threads of TensorStore find the event loop closed, and coroutines are destroyed before their end. Python reports
    both through `sys.unraisablehook`; all other errors are reported as before.
    """
    report = sys.unraisablehook
    if getattr(report, "__module__", "") == __name__:
        return  # Dropped already, after an earlier failure.

    def hook(late: "sys.UnraisableHookArgs") -> None:
        is_closed = isinstance(late.exc_value, RuntimeError) and str(late.exc_value) == "Event loop is closed"
        is_unfinished = inspect.iscoroutine(late.object) and "orbax" in late.object.cr_code.co_filename
        if not is_closed and not is_unfinished:
            report(late)

    sys.unraisablehook = hook
