"""How a chat template writes a chat, and which characters of the result are trained."""
