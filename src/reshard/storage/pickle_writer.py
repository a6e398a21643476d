"""Writes a pickle from plain values and inert records; nothing is looked up or called.

Protocol 2, which every `torch.load` reads, `weights_only` included. The same tree always gives the
same bytes. Source: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from reshard.storage.inert import Global, Record, Size

Reduced = tuple[Global, tuple[object, ...]]
"""A call that makes an object: the callable and its arguments."""


class Persistent:
    """An object that the pickle refers to by a persistent id.

    Args:  key: the id.
    """

    __slots__ = ("key",)

    def __init__(self, key: object) -> None:
        self.key = key


def write_pickle(root: object, reduce: Callable[[object], Reduced | None] | None = None) -> bytes:
    """The pickle of a tree of plain values, `Global`s, `Record`s, and `Persistent`s.

    Args:  reduce: says how an object of any other type is made; None for one that it does not know.
    Raises: TypeError for an object that cannot be written; RecursionError for a tree that holds
            itself.
    """
    writer = _Writer(reduce)
    writer.write(root)
    writer.out += b"."
    return bytes(writer.out)


class Hole:
    """A place in a tree for a value that a `Template` is filled with."""


class Pickled:
    """Part of a tree whose pickle is there already.

    Args:  data: without the marks of a pickle's beginning and end.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class Template:
    """The pickle of a tree with holes, which is filled very often.

    Args:  root: with a `Hole` wherever a value goes.
    """

    def __init__(self, root: object) -> None:
        writer = _Writer(None)
        writer.write(root)
        ends = [*writer.holes, len(writer.out)]
        starts = [_HEAD, *writer.holes]
        self._parts = [bytes(writer.out[a:b]) for a, b in zip(starts, ends, strict=True)]

    def fill(self, *values: object) -> Pickled:
        """The tree with these values in its holes, in the order of the pickle."""
        writer = _Writer(None)
        for part, value in zip(self._parts, values, strict=False):
            writer.out += part
            writer.write(value)
        writer.out += self._parts[-1]
        return Pickled(bytes(writer.out[_HEAD:]))


def pickled_dict(items: bytes | bytearray) -> Pickled:
    """A dict of items that are pickled already, key and value in turn."""
    return Pickled(b"}" + (b"(" + bytes(items) + b"u" if items else b""))


def pickled(value: object) -> Pickled:
    """The pickle of part of a tree."""
    writer = _Writer(None)
    writer.write(value)
    return Pickled(bytes(writer.out[_HEAD:]))


_HEAD = 2
"""Bytes of the mark of a pickle's beginning."""


class _Writer:
    def __init__(self, reduce: Callable[[object], Reduced | None] | None) -> None:
        self.out = bytearray(b"\x80\x02")
        self.holes: list[int] = []
        self._reduce = reduce

    def write(self, value: object) -> None:
        out = self.out
        if type(value) is Pickled:
            out += value.data
        elif value is None:
            out += b"N"
        elif value is True:
            out += b"\x88"
        elif value is False:
            out += b"\x89"
        elif isinstance(value, str):
            raw = value.encode("utf-8", "surrogatepass")
            out += b"X" + struct.pack("<I", len(raw)) + raw
        elif isinstance(value, int):
            out += _integer(value)
        elif isinstance(value, float):
            out += b"G" + struct.pack(">d", value)
        elif isinstance(value, Size):
            self._call(Global("torch", "Size"), (tuple(value),))
        elif isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            out += b"]"
            self._marked(value, b"e")
        elif isinstance(value, dict):
            out += b"}"
            self._marked([item for pair in value.items() for item in pair], b"u")
        else:
            self._other(value)

    def _other(self, value: object) -> None:
        if isinstance(value, Hole):
            self.holes.append(len(self.out))
        elif isinstance(value, Global):
            self._global(value)
        elif isinstance(value, Record):
            self._record(value)
        elif isinstance(value, Persistent):
            self.write(value.key)
            self.out += b"Q"
        elif isinstance(value, bytes):
            self._call(Global("_codecs", "encode"), (value.decode("latin-1"), "latin1"))
        elif isinstance(value, bytearray):
            text = value.decode("latin-1")
            self._call(Global("builtins", "bytearray"), (text, "latin-1"))
        elif isinstance(value, complex):
            self._call(Global("builtins", "complex"), (value.real, value.imag))
        elif isinstance(value, (set, frozenset)):
            name = "set" if isinstance(value, set) else "frozenset"
            self._call(Global("builtins", name), (sorted(value, key=repr),))
        else:
            reduced = self._reduce(value) if self._reduce else None
            if reduced is None:
                raise TypeError(f"a {type(value).__name__} cannot be written into a pickle")
            self._call(*reduced)

    def _global(self, value: Global) -> None:
        owner, dot, name = value.name.rpartition(".")
        if dot:  # protocol 2 names no attributes of classes
            self._call(Global("builtins", "getattr"), (Global(value.module, owner), name))
        else:
            self.out += b"c" + f"{value.module}\n{value.name}\n".encode()

    def _call(self, function: Global, args: tuple[object, ...]) -> None:
        self.write(function)
        self.write(args)
        self.out += b"R"

    def _tuple(self, value: tuple[object, ...]) -> None:
        if len(value) > 3:
            self.out += b"("
        for item in value:
            self.write(item)
        self.out += (b")", b"\x85", b"\x86", b"\x87")[len(value)] if len(value) <= 3 else b"t"

    def _marked(self, items: list[object], end: bytes) -> None:
        if items:
            self.out += b"("
            for item in items:
                self.write(item)
            self.out += end

    def _record(self, value: Record) -> None:
        cls = Global(value.module, value.name)
        if value.how == "newobj":
            self.write(cls)
            self.write(value.args)
            self.out += b"\x81"
        elif value.how == "newobj_ex":
            self._call(Global("copyreg", "__newobj_ex__"), (cls, value.args[:-1], value.args[-1]))
        else:
            self._call(cls, value.args)
        self._marked(value.appended, b"e")
        self._marked([item for pair in value.items for item in pair], b"u")
        for state in value.state:
            self.write(state)
            self.out += b"b"


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 8:
        return b"K" + bytes((value,))
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) < 256:
        return b"\x8a" + bytes((len(raw),)) + raw
    return b"\x8b" + struct.pack("<i", len(raw)) + raw
