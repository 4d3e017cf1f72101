"""The command line of `python -m pipeline`."""
