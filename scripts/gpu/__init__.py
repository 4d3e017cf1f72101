"""The GPU's part of the tests, see `scripts/gpu_check`. No data is read, and no package that a bare image may lack."""
