"""Pickles, opcode by opcode."""

from __future__ import annotations

import struct

STOP = b"."
MARK = b"("
EMPTY_LIST, EMPTY_DICT, EMPTY_TUPLE = b"]", b"}", b")"
NONE, REDUCE, BUILD, DUP = b"N", b"R", b"b", b"2"


def program(*parts: bytes) -> bytes:
    """A pickle of protocol 4."""
    return b"\x80\x04" + b"".join(parts) + STOP


def name(module: str, attribute: str) -> bytes:
    """A global."""
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(value: str | bytes) -> bytes:
    """A string."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """An integer of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(raw)) + raw


def items(*values: bytes) -> bytes:
    """A tuple."""
    return MARK + b"".join(values) + b"t"


def listed(*values: bytes) -> bytes:
    """A list."""
    return EMPTY_LIST + MARK + b"".join(values) + b"e"


def table(**values: bytes) -> bytes:
    """A dict."""
    return entries(values)


def entries(values: dict[str, bytes]) -> bytes:
    """A dict of any keys."""
    return EMPTY_DICT + MARK + b"".join(text(k) + v for k, v in values.items()) + b"u"


def put(slot: int) -> bytes:
    """Remember the top of the stack."""
    return b"r" + struct.pack("<I", slot)


def get(slot: int) -> bytes:
    """Push what was remembered."""
    return b"j" + struct.pack("<I", slot)


def call(function: bytes, *arguments: bytes) -> bytes:
    """A call."""
    return function + items(*arguments) + REDUCE


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 4) -> bytes:
    """A persistent id of a storage."""
    place = items(text("storage"), name("torch", kind), text(key), text("cpu"), number(numel))
    return place + b"Q"


def shape(*sizes: int) -> bytes:
    """A tuple of integers."""
    return items(*map(number, sizes))


def tensor(
    sizes: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    of: bytes | None = None,
) -> bytes:
    """A tensor."""
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if of is None else of,
        number(offset),
        shape(*sizes),
        shape(*strides),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )
