"""How much a pickle may ask for: bounds on its program, on its keys, and on the tree it makes.

A few bytes can name one list a million times over. Whoever walks such a tree never ends, so it is
refused before anyone does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.storage.inert import Global, Record
from reshard.storage.tensor_ref import TensorRef

_MAX_KEY_ITEMS = 64
_MAX_KEY_BITS = 64  # integers beyond it could be chosen such that all of them collide
_MAX_RATIO = 8
_HEAVY = 64
_MAX_COPIED = 1 << 20  # larger tensors within an object are not copied
_SCALARS = (str, bytes, float, type(None), Global, DType, TensorRef)


@dataclass(frozen=True, slots=True)
class PickleLimits:
    """Bounds on what a pickle may ask for.

    Args:  nbytes: of the pickle.  operations: opcodes.  depth: nested marks, and levels of the tree
           that it makes.  integer_nbytes: of one integer.
           repeats: objects that the tree may have beyond those that were made, where it names one
           in several places.
    """

    nbytes: int = 1 << 30
    operations: int = 200_000_000
    depth: int = 100
    integer_nbytes: int = 4096
    repeats: int = 1_000_000


def key_fault(key: object) -> str:
    """Why a value cannot be a key; empty if it can.

    Hashing is linear in what is let through: a tuple of a tuple twice, and so on, is not.
    """
    if isinstance(key, (tuple, frozenset)):
        if len(key) > _MAX_KEY_ITEMS:
            return f"{len(key)} items as a key"
        return next((fault for item in key if (fault := _item_fault(item))), "")
    return _item_fault(key)


def _item_fault(item: object) -> str:
    if isinstance(item, int):
        return "" if item.bit_length() <= _MAX_KEY_BITS else "so large an integer as a key"
    if isinstance(item, tuple) and len(item) <= _MAX_KEY_ITEMS:
        plain = all(isinstance(part, (int, *_SCALARS)) for part in item)
        return "" if plain else "a tuple of tuples of tuples as a key"
    if isinstance(item, (*_SCALARS, Record)):
        return ""
    return f"a {type(item).__name__} as a key"


def tree_fault(root: object, limits: PickleLimits) -> str:
    """Why a tree cannot be walked; empty if it can.

    Its depth, and the number of objects that a walk meets, are added up from the leaves; each
    object is looked at once.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of a container: what a walk meets, and levels
    weighed: set[object] = set()
    entered: set[int] = set()
    count = 0
    stack: list[tuple[object, bool]] = [(root, False)]
    while stack:
        value, rest = stack.pop()
        key = id(value)
        if key in sizes or not isinstance(value, _CONTAINERS):
            continue
        if not rest:
            if key in entered:
                return "an object holds itself"
            entered.add(key)
            stack.append((value, True))
            stack += [(item, False) for item in _children(value) if isinstance(item, _CONTAINERS)]
            continue
        met, levels = 1, 0
        count += 1
        for item in _children(value):
            if isinstance(item, _CONTAINERS):
                below, deep = sizes[id(item)]
                met += below
                levels = max(levels, deep)
                continue
            weight = _weight(item)
            met += weight
            if weight == 1:
                count += 1
            elif _identity(item) not in weighed:
                weighed.add(_identity(item))
                count += weight
        sizes[key] = met, levels + 1
        if levels + 1 > limits.depth:
            return f"objects are nested deeper than {limits.depth}"
        if met > _MAX_RATIO * count + limits.repeats:
            return f"{count} objects name each other such that a walk meets {met} and more"
    return ""


def _weight(leaf: object) -> int:
    """How much copying an object takes: 1, or more for a long one."""
    if isinstance(leaf, (str, bytes, bytearray)):
        return 1 + len(leaf) // _HEAVY
    if isinstance(leaf, TensorRef):
        return 1 + min(leaf.nbytes, _MAX_COPIED) // _HEAVY
    return 1


def _identity(leaf: object) -> object:
    return leaf.storage_key if isinstance(leaf, TensorRef) else id(leaf)


_CONTAINERS = (list, dict, tuple, set, frozenset, Record)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield item
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, Record):
        yield from value.args
        yield from value.state
        yield from value.appended
        for key, item in value.items:
            yield key
            yield item
