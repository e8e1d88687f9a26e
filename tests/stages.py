"""Stages of a command that take long enough to be announced."""

import threading


def take_long(context):
    """Stays in a context until its stage is announced, which `SILENT_SECONDS` of `jaxcnn.terminal` makes soon."""
    with context:
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
