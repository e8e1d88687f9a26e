"""Conformance suite: runs every exported network in the runtimes that people use, `python -m tests.conformance`."""
