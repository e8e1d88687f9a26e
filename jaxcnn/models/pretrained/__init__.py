"""Weights that others trained, as variables of the networks in `jaxcnn.models`; `importers` says how to add more."""

from jaxcnn.models.pretrained.importers import NAMES, PATTERN, read_pretrained
from jaxcnn.models.pretrained.record import Origin, Pretrained

__all__ = ["NAMES", "PATTERN", "Origin", "Pretrained", "read_pretrained"]
