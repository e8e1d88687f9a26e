"""Train image classifiers with JAX and Flax, from pictures to a checkpoint."""

__version__ = "0.1.0"
