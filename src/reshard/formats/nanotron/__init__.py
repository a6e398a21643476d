"""nanotron: a safetensors file for each shard of a weight, a torch file for each rank's states."""

from __future__ import annotations

NAME = "nanotron"
METADATA = "checkpoint_metadata.json"
MODEL_CONFIG = "model_config.json"
OPTIMIZER_CONFIG = "optimizer/optimizer_config.json"
LATEST = "latest.txt"

COPY = "copy"
"""Mesh axis of the ranks that hold the same states of the same parameter."""
