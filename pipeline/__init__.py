"""Everything that touches files: inputs, windows, shards, publication, verification, the command line."""
