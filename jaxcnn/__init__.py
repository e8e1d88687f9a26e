"""Train image classifiers with JAX and Flax, from pictures to a checkpoint."""
