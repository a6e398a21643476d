"""A tensor in a file, of which nothing is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from reshard.dtypes import DType


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor as it lies in a file; nothing of it is read.

    Args:  file: path of the file.  byte_offset: absolute, of the element with index 0.
           shape, strides: in elements.  storage_key: names the storage, which several tensors may
           share.  storage_numel: elements of the storage.  storage_offset: of index 0 in it.
           parameter: whether it was a `torch.nn.Parameter`.
           attributes: what else the object carried (ZeRO-3 hangs a `ds_id` on its buffers).
    """

    file: str
    byte_offset: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_key: str
    storage_numel: int
    storage_offset: int
    parameter: bool = False
    attributes: Mapping[object, object] | None = field(default=None, compare=False, repr=False)

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, as if dense."""
        return self.numel * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie row-major and dense."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1:
                if stride != expected and self.numel:
                    return False
                expected *= size
        return True
