"""Samples as a person can check them, tokenised without writing anything."""
