"""Whether a folder is a DeepSpeed checkpoint."""

from reshard.formats.deepspeed.files import detect

__all__ = ["detect"]
