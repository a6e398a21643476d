"""DeepSpeed: what it saves, read without it."""
