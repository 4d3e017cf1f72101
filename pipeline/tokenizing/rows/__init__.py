"""What a raw row says: a chat, a pair or a text, whatever its columns and keys are called."""
