"""Vectors of samples, for strategies that relate them: made once, stored, hashed.

`embedders` says what a vector is made of; `tokens`, `sentences` and `columns` make them; `store` keeps them under the
cache folder; `vectors` does it all for the rows of a run.
"""
