"""What `scripts/bench` measures: subjects, each in parts, with their peers side by side in the same run."""
