"""What the labels of a pack say."""

IGNORE = -100
"""The label of a token that is not a target."""
