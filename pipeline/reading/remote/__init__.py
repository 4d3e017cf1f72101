"""Input files that do not lie on this machine."""
