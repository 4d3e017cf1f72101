"""A training run: its options, its output, and its ranks."""
