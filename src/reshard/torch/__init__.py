"""For programs that use PyTorch; the rest of the package never imports it."""

from reshard.torch.reader import ReshardReader

__all__ = ["ReshardReader"]
