"""Whether a container runs the command, so that what started the container acts on its exit status."""

import os

VARIABLE = "TRAINING_CONTAINER"
"""Environment variable of the image for training. The server refuses unknown ones that begin with JAXCNN_."""


def is_container() -> bool:
    """Returns whether this is the first process of a container, or any process of the image for training.

    With an init process, or where containers of a pod share their process numbers, the command is not the first.
    """
    return os.getpid() == 1 or bool(os.environ.get(VARIABLE))
