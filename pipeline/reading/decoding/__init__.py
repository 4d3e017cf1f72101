"""Files that have to be decoded before their rows can be used: JSON lines, parquet, compressed Arrow."""
