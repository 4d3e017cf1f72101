"""Objects on a store that speaks the S3 protocol: requests, a lease, and copies on disk."""
