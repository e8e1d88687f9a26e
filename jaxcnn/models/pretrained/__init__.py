"""Weights that others have trained, as variables of the networks of `jaxcnn.models`."""
