"""Where pictures come from: every module but the shared ones turns one kind of source into a `Source`."""
