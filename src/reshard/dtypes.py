"""The element types a checkpoint can hold, by their safetensors names."""

from __future__ import annotations

from enum import StrEnum


class DType(StrEnum):
    """An element type; the value is its name in a safetensors header.

    An element of F4 is one byte, two numbers of four bits: torch's `float4_e2m1fn_x2`.
    """

    BOOL = "BOOL"
    U8 = "U8"
    I8 = "I8"
    F4 = "F4"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    I16 = "I16"
    U16 = "U16"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    U32 = "U32"
    F32 = "F32"
    I64 = "I64"
    U64 = "U64"
    F64 = "F64"
    C64 = "C64"
    C128 = "C128"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE[self]


_ITEMSIZE: dict[DType, int] = {
    **dict.fromkeys((DType.BOOL, DType.U8, DType.I8, DType.F4), 1),
    **dict.fromkeys(
        (DType.F8_E4M3, DType.F8_E5M2, DType.F8_E8M0, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ), 1
    ),
    **dict.fromkeys((DType.I16, DType.U16, DType.F16, DType.BF16), 2),
    **dict.fromkeys((DType.I32, DType.U32, DType.F32), 4),
    **dict.fromkeys((DType.I64, DType.U64, DType.F64, DType.C64), 8),
    DType.C128: 16,
}
