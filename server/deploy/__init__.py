"""Puts the server on the machines of a cloud: `python -m server.deploy`."""
