"""What a directory of ours looks like on disk: columns, counts, manifest, identity, and the files around shards."""
