"""Attention within segments: the backends that compute it, and the door by which models of transformers take it."""
