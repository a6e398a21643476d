"""PyTorch Distributed Checkpoint: FSDP, DTensor, torchtitan, and what else writes `.metadata`."""

NAME = "dcp"
