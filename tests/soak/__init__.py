"""A soak of the server: everything that may go wrong, at once, for hours, without one good request lost."""
