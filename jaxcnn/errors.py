"""The one exception for what a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: a setting, a path, a picture, a workdir.

    The message is one line that says what is wrong, where, and what to do. Commands print it without
    a traceback and exit with status 2; library callers can catch it.
    """
