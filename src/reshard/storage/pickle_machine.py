"""The stack machine of a pickle, which imports and calls nothing that the pickle names.

Source: CPython, Lib/pickletools.py (the opcodes, protocols 0 to 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NoReturn

from reshard.storage.inert import Global, Record
from reshard.storage.pickle_limits import PickleLimits, key_fault
from reshard.storage.pickle_values import Constructor

_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)
_MAX_COPIES = 4
_FREE_COPIES = 4096


class _Mark:
    """Where a group of stack items begins."""


_MARK = _Mark()


class Fault(Exception):  # noqa: N818 - never leaves the reader
    """Something in the pickle that cannot be; becomes `bad-pickle`."""


class ShortError(Fault):
    """The pickle goes on behind the bytes that there are."""


def _fail(why: str) -> NoReturn:
    raise Fault(why)


class Machine:
    """The stack machine of a pickle."""

    def __init__(
        self,
        data: bytes,
        persistent_load: Callable[[object], object] | None,
        constructors: Mapping[Global, Constructor],
        limits: PickleLimits,
    ) -> None:
        self.at = 0
        self._data = data
        self._next = 0
        self._persistent_load = persistent_load
        self._constructors = constructors
        self._limits = limits
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        self._marks = 0
        self._taken = 0

    @property
    def end(self) -> int:
        """How many bytes were read."""
        return self._next

    def run(self) -> object:
        """Execute until STOP."""
        operations = _OPERATIONS
        for _ in range(self._limits.operations):
            self.at = self._next
            code = self._bytes(1)[0]
            if code == 0x2E:  # STOP
                if len(self._stack) != 1:
                    _fail(f"{len(self._stack)} objects are left on the stack")
                return self._stack[0]
            operation = operations.get(code)
            if operation is None:
                _fail(f"unknown opcode 0x{code:02x}")
            operation(self)
        _fail("the program is too long")

    # Reading.

    def _bytes(self, count: int) -> bytes:
        end = self._next + count
        if count < 0 or end > len(self._data):
            rest = len(self._data) - self._next
            raise ShortError(f"{count} bytes are wanted, {rest} are left")
        out = self._data[self._next : end]
        self._next = end
        return out

    def _unsigned(self, nbytes: int) -> int:
        return int.from_bytes(self._bytes(nbytes), "little")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._next)
        if end < 0:
            raise ShortError("a line has no end")
        out = self._data[self._next : end]
        self._next = end + 1
        return out

    # The stack.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            _fail("the stack is empty")
        return self._stack.pop()

    def _top(self) -> object:
        if not self._stack or self._stack[-1] is _MARK:
            _fail("the stack is empty")
        return self._stack[-1]

    def _since_mark(self) -> list[object]:
        stack = self._stack
        index = len(stack) - 1
        while index >= 0 and stack[index] is not _MARK:
            index -= 1
        if index < 0:
            _fail("there is no mark")
        out = stack[index + 1 :]
        del stack[index:]
        self._marks -= 1
        return out

    def mark(self) -> None:
        self._marks += 1
        if self._marks > self._limits.depth:
            _fail(f"nested deeper than {self._limits.depth}")
        self._push(_MARK)

    def drop(self) -> None:
        if not self._stack:
            _fail("the stack is empty")
        if self._stack.pop() is _MARK:
            self._marks -= 1

    def drop_marked(self) -> None:
        self._since_mark()

    # Values.

    def proto(self) -> None:
        version = self._unsigned(1)
        if version > 5:
            _fail(f"protocol {version}; at most 5 is known")

    def frame(self) -> None:
        size = self._unsigned(8)
        if size > len(self._data) - self._next:
            rest = len(self._data) - self._next
            raise ShortError(f"a frame of {size} bytes, {rest} are left")

    def put_long(self, size_nbytes: int) -> None:
        count = self._unsigned(size_nbytes)
        if count > self._limits.integer_nbytes:
            _fail(f"an integer of {count} bytes")
        self._push(int.from_bytes(self._bytes(count), "little", signed=True))

    def decimal(self) -> None:
        line = self._line()
        if line in (b"00", b"01"):
            self._push(line == b"01")
            return
        self._push(self._decimal(line))

    def long_decimal(self) -> None:
        self._push(self._decimal(self._line().removesuffix(b"L")))

    def _decimal(self, line: bytes) -> int:
        if len(line) > self._limits.integer_nbytes:
            _fail(f"an integer of {len(line)} digits")
        return int(line)

    def text(self, size_nbytes: int) -> None:
        raw = self._bytes(self._unsigned(size_nbytes))
        self._push(raw.decode("utf-8", "surrogatepass"))

    def text_line(self) -> None:
        self._push(self._line().decode("raw-unicode-escape"))

    def old_text(self, size_nbytes: int) -> None:
        """A string of Python 2: text where it is ASCII, else its bytes."""
        raw = self._bytes(self._unsigned(size_nbytes))
        self._push(raw.decode("ascii") if raw.isascii() else raw)

    def old_text_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            _fail("a string without quotes")
        raw = line[1:-1].decode("ascii").encode("ascii").decode("unicode_escape")
        self._push(raw)

    def raw(self, size_nbytes: int) -> None:
        self._push(self._bytes(self._unsigned(size_nbytes)))

    def raw_mutable(self) -> None:
        self._push(bytearray(self._bytes(self._unsigned(8))))

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def dict_of_marked(self) -> None:
        items = self._since_mark()
        out: dict[object, object] = {}
        self._set(out, items)
        self._push(out)

    # Containers.

    def append(self) -> None:
        value = self._pop()
        self._extend([value])

    def _extend(self, values: list[object]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.appended.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            _fail(f"items are appended to a {type(target).__name__}")

    def appends(self) -> None:
        self._extend(self._since_mark())

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set(self._top(), [key, value])

    def set_items(self) -> None:
        items = self._since_mark()
        self._set(self._top(), items)

    def _set(self, target: object, items: list[object]) -> None:
        if len(items) % 2:
            _fail("a key has no value")
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            for key, value in pairs:
                target[_hashable(key)] = value
        elif isinstance(target, Record):
            target.items.extend(pairs)
        else:
            _fail(f"keys are set in a {type(target).__name__}")

    def add_items(self) -> None:
        items = self._since_mark()
        target = self._top()
        if not isinstance(target, set):
            _fail(f"items are added to a {type(target).__name__}")
        target.update(_hashable(item) for item in items)

    # The memo.

    def get(self, key: int) -> None:
        if key not in self._memo:
            _fail(f"memo {key} is not set")
        self._push(self._memo[key])

    def put(self, key: int) -> None:
        self._memo[key] = self._top()

    # Objects.

    def global_line(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self._push(_global(module, name))

    def global_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            _fail("a global whose name is not text")
        self._push(_global(module, name))

    def reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(args, tuple):
            _fail("a call whose arguments are no tuple")
        self._push(self._call(function, args))

    def _call(self, function: object, args: tuple[object, ...]) -> object:
        if not isinstance(function, Global):
            _fail(f"a call of a {type(function).__name__}")
        make = self._constructors.get(function)
        if make is not None:
            return self._made(make, args)
        return Record(function.module, function.name, args)

    def _made(self, make: Constructor, args: tuple[object, ...]) -> object:
        """What a constructor makes; all of them together copy no more than the pickle holds."""
        self._taken += sum(len(item) for item in args[:1] if isinstance(item, _SIZED))
        if self._taken > _MAX_COPIES * len(self._data) + _FREE_COPIES:
            _fail("its objects are copied again and again")
        return make(args)

    def new_object(self) -> None:
        args, cls = self._pop(), self._pop()
        self._new(cls, args, "newobj")

    def _new(self, cls: object, args: object, how: str) -> None:
        if not isinstance(cls, Global) or not isinstance(args, tuple):
            _fail("an object without a class")
        make = self._constructors.get(cls)
        if make is not None and how == "newobj":
            self._push(self._made(make, args))
        elif how == "newobj":
            self._push(Record(cls.module, cls.name, args, "newobj"))
        elif how == "newobj_ex":
            self._push(Record(cls.module, cls.name, args, "newobj_ex"))
        else:
            self._push(Record(cls.module, cls.name, args, "inst"))

    def new_object_ex(self) -> None:
        kwargs, args, cls = self._pop(), self._pop(), self._pop()
        if not isinstance(args, tuple):
            _fail("a call whose arguments are no tuple")
        self._new(cls, (*args, kwargs), "newobj_ex")

    def instance(self) -> None:
        module, name = self._line().decode(), self._line().decode()
        self._new(_global(module, name), tuple(self._since_mark()), "inst")

    def object_of_marked(self) -> None:
        items = self._since_mark()
        if not items:
            _fail("an object without a class")
        self._new(items[0], tuple(items[1:]), "inst")

    def build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Record):
            target.state.append(state)
        elif isinstance(target, dict) and isinstance(state, dict):
            pass  # attributes of an OrderedDict (`_metadata` of a state dict): versions, no data
        else:
            _fail(f"a state is set on a {type(target).__name__}")

    def persistent(self, key: object) -> None:
        if self._persistent_load is None:
            _fail("a persistent id, which this pickle may not have")
        self._push(self._persistent_load(key))


def _hashable(key: object) -> object:
    if fault := key_fault(key):
        _fail(fault)
    return key


def _global(module: str, name: str) -> Global:
    """A global; its name is one word, as every format of pickles writes it."""
    if not module.isprintable() or not name.isprintable() or " " in module + name:
        _fail("a global whose name is no name")
    return Global(module, name)


_Operation = Callable[[Machine], None]
_M = Machine


def _struct(code: str) -> _Operation:
    size = struct.calcsize(code)
    return lambda m: m._push(struct.unpack(code, m._bytes(size))[0])


_OPERATIONS: dict[int, _Operation] = {
    ord(b"("): _M.mark,
    ord(b"0"): lambda m: m.drop(),
    ord(b"1"): lambda m: m.drop_marked(),
    ord(b"2"): lambda m: m._push(m._top()),
    ord(b"F"): lambda m: m._push(float(m._line())),
    ord(b"G"): _struct(">d"),
    ord(b"I"): _M.decimal,
    ord(b"J"): _struct("<i"),
    ord(b"K"): lambda m: m._push(m._unsigned(1)),
    ord(b"M"): lambda m: m._push(m._unsigned(2)),
    ord(b"L"): _M.long_decimal,
    ord(b"N"): lambda m: m._push(None),
    ord(b"P"): lambda m: m.persistent(m._line().decode()),
    ord(b"Q"): lambda m: m.persistent(m._pop()),
    ord(b"R"): _M.reduce,
    ord(b"S"): _M.old_text_line,
    ord(b"T"): lambda m: m.old_text(4),
    ord(b"U"): lambda m: m.old_text(1),
    ord(b"V"): _M.text_line,
    ord(b"X"): lambda m: m.text(4),
    ord(b"a"): _M.append,
    ord(b"b"): _M.build,
    ord(b"c"): _M.global_line,
    ord(b"d"): _M.dict_of_marked,
    ord(b"}"): lambda m: m._push({}),
    ord(b"e"): _M.appends,
    ord(b"g"): lambda m: m.get(int(m._line())),
    ord(b"h"): lambda m: m.get(m._unsigned(1)),
    ord(b"j"): lambda m: m.get(m._unsigned(4)),
    ord(b"i"): _M.instance,
    ord(b"l"): lambda m: m._push(m._since_mark()),
    ord(b"]"): lambda m: m._push([]),
    ord(b"o"): _M.object_of_marked,
    ord(b"p"): lambda m: m.put(int(m._line())),
    ord(b"q"): lambda m: m.put(m._unsigned(1)),
    ord(b"r"): lambda m: m.put(m._unsigned(4)),
    ord(b"s"): _M.set_item,
    ord(b"t"): lambda m: m._push(tuple(m._since_mark())),
    ord(b")"): lambda m: m._push(()),
    ord(b"u"): _M.set_items,
    0x80: _M.proto,
    0x81: _M.new_object,
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    0x8A: lambda m: m.put_long(1),
    0x8B: lambda m: m.put_long(4),
    ord(b"B"): lambda m: m.raw(4),
    ord(b"C"): lambda m: m.raw(1),
    0x8C: lambda m: m.text(1),
    0x8D: lambda m: m.text(8),
    0x8E: lambda m: m.raw(8),
    0x8F: lambda m: m._push(set()),
    0x90: _M.add_items,
    0x91: lambda m: m._push(frozenset(_hashable(x) for x in m._since_mark())),
    0x92: _M.new_object_ex,
    0x93: _M.global_stack,
    0x94: lambda m: m.put(len(m._memo)),
    0x95: _M.frame,
    0x96: _M.raw_mutable,
}
