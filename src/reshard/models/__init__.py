"""Which model a checkpoint is of, its tensors' names in other frameworks, and its configuration."""
