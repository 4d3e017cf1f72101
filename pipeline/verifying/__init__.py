"""Whether a packed dataset is what its manifest says, by an account kept apart from the one that packing keeps."""
