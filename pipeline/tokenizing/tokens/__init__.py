"""Texts → token ids, and where characters stand among them."""
