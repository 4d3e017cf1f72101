"""Reading JSON by compiled code."""
