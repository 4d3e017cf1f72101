"""What becomes of each kind of chat under each chat template, tried and held against oracles."""
