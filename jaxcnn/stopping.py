"""The request to stop a run early: by a signal to one of its processes, or since nobody reads the log's echo."""

import signal

from jaxcnn.processes import Wishes, propose
from jaxcnn.run.metrics_log import MetricsLog
from jaxcnn.signals import StopRequest

UNREAD: signal.Signals = getattr(signal, "SIGPIPE", signal.SIGABRT)
"""Stands for the signal that asks to stop if the echo of the log cannot be written; Windows has no SIGPIPE."""


def wish_to_stop(stop: StopRequest, log: MetricsLog) -> int:
    """Returns the number of the signal that asks this process to stop; 0 without."""
    return stop.signal or (UNREAD if log.is_unread else 0)


def decide_to_stop(stop: StopRequest, log: MetricsLog) -> signal.Signals | None:
    """Returns the signal that asks one of the processes to stop, in all of them."""
    return signal_of(propose(lambda: Wishes(stop=wish_to_stop(stop, log), save=False, log=False))())


def signal_of(decided: Wishes) -> signal.Signals | None:
    """Returns the signal in what all processes have decided; None without."""
    return signal.Signals(decided.stop) if decided.stop else None
