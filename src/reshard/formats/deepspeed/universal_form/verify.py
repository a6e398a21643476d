"""The checksums of its files are those of any torch file."""

from __future__ import annotations

from reshard.formats.deepspeed.verify import check_bytes

__all__ = ["check_bytes"]
