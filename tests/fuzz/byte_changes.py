"""Changes of bytes, of texts, and of trees, drawn from a source of random numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from reshard.storage.inert import Record

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 8, 64, 255, 256, 1000, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63)),
)
TEXTS = (
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "w\0", "w\n", "\x1b[31m", "\ud800", "\u202e"),
    *("x" * 300, "0", "-1", "**", "*", "{layer}", "exp_avg", "step", "param", "F32", "nan"),
)


def mutate_bytes(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """One to four changes of some bytes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 1, 2, 4))):
        _change(out, others, random)
    return bytes(out)


def _change(out: bytearray, others: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(out) + 1)
    count = random.choice((1, 1, 2, 4, 8, 16, 64, 512))
    kind = random.randrange(9)
    if kind == 0 and out:
        out[at % len(out)] ^= 1 << random.randrange(8)
    elif kind == 1 and out:
        out[at % len(out)] = random.randrange(256)
    elif kind == 2:
        out[at:at] = random.randbytes(count)
    elif kind == 3:
        del out[at : at + count]
    elif kind == 4:
        start = random.randrange(len(out) + 1)
        out[at:at] = out[start : start + count]
    elif kind == 5:
        form = random.choice(("<H", "<I", "<Q"))
        width = struct.calcsize(form)
        out[at : at + width] = struct.pack(form, random.choice(INTEGERS) % 256**width)
    elif kind == 6:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        out[at : at + random.choice((0, count))] = other[start : start + count]
    elif kind == 7:
        out[at : at + count] = bytes([random.choice((0, 255, 0x20, 0x28, 0x5B, 0x7B))]) * count
    else:
        del out[at:]


OPCODES = tuple(bytes([code]) for code in b"(0122FGIJKMLNPQRSTUVXabc}edghijlpqrsto)u]\x80\x81.")
LATE = tuple(bytes([code]) for code in range(0x82, 0x99))


def mutate_program(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Changes of a pickle: of its bytes, and of whole operations."""
    if random.random() < 0.5:
        return mutate_bytes(data, others, random)
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(out) + 1)
        piece = random.choice((OPCODES, LATE))[random.randrange(23)]
        kind = random.randrange(6)
        if kind == 0:
            piece = b"h" + bytes([random.randrange(40)]) + random.choice((b"", b"e", b"\x85", b"u"))
        elif kind == 1:
            value = random.choice(INTEGERS)
            raw = value.to_bytes(10, "little", signed=True)
            piece = b"\x8a\x0a" + raw
        elif kind == 2:
            raw = random.choice(TEXTS).encode("utf-8", "surrogatepass")
            piece = b"X" + struct.pack("<I", len(raw)) + raw
        elif kind == 3:
            piece = b"cos\nsystem\n(X\x04\x00\x00\x00exittR"
        elif kind == 4:
            piece = random.choice((b"]", b"}", b")", b"(", b"2")) * random.choice((1, 3, 200))
        out[at : at + random.choice((0, 0, len(piece)))] = piece
    return bytes(out)


def mutate_text(text: str, words: Sequence[str], random: Random) -> str:
    """Changes of a text: words of it and of a list, lines, and single characters."""
    out = text
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(out) + 1)
        end = min(len(out), at + random.choice((0, 0, 1, 3, 10, 40)))
        kind = random.randrange(4)
        if kind == 0:
            piece = random.choice(words)
        elif kind == 1:
            start = random.randrange(len(out) + 1)
            piece = out[start : start + random.choice((1, 5, 30, 200))]
        elif kind == 2:
            piece = random.choice((*TEXTS, *map(str, INTEGERS)))
        else:
            piece = chr(random.choice((0, 9, 10, 34, 35, 40, 92, 123, 125, 233, 0x202E, 0x1F600)))
        out = out[:at] + piece + out[end:]
    return out


Leaf = Callable[[Random], object]


def mutate_tree(root: Any, random: Random, leaf: Leaf) -> Any:
    """A copy of nested dicts, lists, and tuples of which one to three nodes are others."""
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(root, ()))
        root = _replaced(root, random.choice(places), random, leaf, root)
    return root


def _places(node: Any, path: tuple[Any, ...]) -> Any:
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _places(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _places(value, (*path, index))


def _replaced(node: Any, path: tuple[Any, ...], random: Random, leaf: Leaf, root: Any) -> Any:
    if path and isinstance(node, dict):
        out = dict(node)
        kind = random.randrange(8)
        if len(path) == 1 and kind == 0:
            del out[path[0]]
        elif len(path) == 1 and kind == 1:
            out[random.choice((*TEXTS, 0, 1, *out))] = out.pop(path[0])
        else:
            out[path[0]] = _replaced(node[path[0]], path[1:], random, leaf, root)
        return out
    if path:
        items = list(node)
        kind = random.randrange(6)
        if len(path) == 1 and kind == 0:
            del items[path[0]]
        elif len(path) == 1 and kind == 1:
            items.append(items[path[0]])
        else:
            items[path[0]] = _replaced(node[path[0]], path[1:], random, leaf, root)
        if isinstance(node, list):
            return items
        return type(node)(items)
    return _other(node, random, leaf, root)


def _other(node: Any, random: Random, leaf: Leaf, root: Any) -> Any:
    kind = random.randrange(8)
    if kind == 0:
        return random.choice((None, True, False, [], {}, (), 0.5, float("inf"), float("nan"), b"x"))
    if kind == 1:
        return random.choice(TEXTS)
    if kind == 2:
        places = [path for path in _places(root, ()) if path]
        return _at(root, random.choice(places)) if places else None
    if kind == 3:
        return leaf(random)
    if isinstance(node, int) and kind < 6:
        return node + random.choice((1, -1, 2, 8))
    return random.choice(INTEGERS)


def _at(root: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        root = root[key]
    return root


_RECORD = "$record"


def opened(value: Any) -> Any:
    """A tree of the pickle reader in which records are lists, so that they can be changed."""
    if isinstance(value, Record):
        pairs = [list(pair) for pair in value.items]
        parts = [list(value.args), value.state, pairs, value.appended]
        return [_RECORD, value.module, value.name, value.how, *(opened(part) for part in parts)]
    if isinstance(value, dict):
        return {key: opened(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(opened, value))
    return value


def closed(value: Any) -> Any:
    """The tree again.  Raises: TypeError or ValueError where a change left no record."""
    if isinstance(value, list) and value and value[0] == _RECORD:
        _, module, name, how, args, state, pairs, appended = value
        items = [(closed(key), closed(item)) for key, item in pairs]
        args, state, appended = (closed(list(part)) for part in (args, state, appended))
        if not all(isinstance(text, str) for text in (module, name, how)):
            raise TypeError("a record without a name")
        return Record(module, name, tuple(args), how, state, items, appended)
    if isinstance(value, dict):
        return {key: closed(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(closed, value))
    return value


def mutate_json(data: bytes, random: Random) -> bytes:
    """A JSON text of which some values are others; now and then of which some bytes are."""
    root = mutate_tree(json.loads(data), random, lambda _: [[]])
    text = json.dumps(root, default=str)
    return text.encode("utf-8", "surrogatepass")
