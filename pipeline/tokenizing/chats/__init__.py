"""What a raw row says, how a chat template writes it, and which characters of the result are trained."""
