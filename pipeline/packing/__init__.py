"""A run of `pack`: from rows to segments, plans and shards."""
