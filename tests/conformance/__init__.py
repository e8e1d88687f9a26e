"""Every network's exported file through the runtimes that people use: `python -m tests.conformance`."""
