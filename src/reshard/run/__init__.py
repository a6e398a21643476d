"""The typed training run: what a checkpoint knows besides tensors, and the names of its states."""
