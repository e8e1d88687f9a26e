"""Classifies any number of pictures: finds them, runs a model on them on all cores, and writes what it says.

Imports no JAX: the model is an ONNX file.
"""
