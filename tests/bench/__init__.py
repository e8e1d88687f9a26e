"""Benchmarks: each is run as `python -m tests.bench.NAME` and ends with one JSON object."""
