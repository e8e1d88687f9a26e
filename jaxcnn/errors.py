"""The exceptions for what the user can correct."""


class UserError(Exception):
    """A mistake in something the user gave: a setting, a path, a picture, a workdir.

    The message is one line that says what is wrong, where, and what to do. Commands print it without a traceback and
    exit with status 2; library callers can catch it.
    """


class TemporaryError(UserError):
    """Something that may be right the next time, such as a network; commands exit with status 75, EX_TEMPFAIL."""
