"""Strategies that look at the lengths of segments alone."""
