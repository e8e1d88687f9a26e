"""The error of `python -m server.deploy`."""


class DeployError(Exception):
    """A deployment that cannot be done, or failed. The message is one line that says what is wrong and what to do."""
