"""Models to train: loaded and written, with or without a LoRA adapter, whole or divided over ranks."""
