"""The networks: a file for each family, `registry` with all of them by name, and weights that others trained."""
