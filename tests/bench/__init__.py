"""Benchmarks: each compares with its peers in one run, and prints one JSON object last."""
