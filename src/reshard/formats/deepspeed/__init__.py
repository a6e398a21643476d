"""DeepSpeed: what it saves, read without it."""

from __future__ import annotations

from reshard.formats.deepspeed.detect import detect
from reshard.formats.deepspeed.read import NAME, read

__all__ = ["NAME", "detect", "read"]
