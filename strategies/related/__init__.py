"""The strategy that relates samples by their embeddings, and what it is made of."""
