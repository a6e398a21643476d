"""One file that holds a state dict, among whatever else."""
