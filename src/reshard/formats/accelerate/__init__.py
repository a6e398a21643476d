"""accelerate's FSDP checkpoints in `.bin` files: a state dict whole, or one of DTensors a rank."""

from __future__ import annotations

NAME = "accelerate"

COPY = "copy"
"""Mesh axis of the ranks that hold the same part of the same tensor."""
