"""What can go wrong in an export."""


class UnsupportedError(Exception):
    """The traced function does something that has no translation; the message names it, its place and a way out."""


class VerificationError(Exception):
    """An exported file failed a check; the message says which, and by how much."""
