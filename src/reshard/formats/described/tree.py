"""The tree that a file holds, and the places in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.algebra.piece import row_major
from reshard.errors import source_error
from reshard.language.place import Bindings, Hole, Item, Key, Place, Rest, key_text
from reshard.storage.bounded_json import load_bounded
from reshard.storage.inert import Record
from reshard.storage.kept import decode, encode
from reshard.storage.pickle_limits import PickleLimits
from reshard.storage.pickle_reader import read_pickle
from reshard.storage.safetensors import read_header
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import open_torch_file
from reshard.store.regular_file import read_file

_TEXT_NBYTES = 1 << 26

Where = tuple["At", ...]
"""A place in a tree: the keys and indices on the way."""


@dataclass(frozen=True, slots=True)
class At:
    """A key of a dict, or the index of a list's item."""

    value: object
    is_item: bool = False

    def __str__(self) -> str:
        return f"[{self.value}]" if self.is_item else f"/{key_text(self.value)}"


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at a place.  bindings: what its holes stand for."""

    bindings: Bindings
    where: Where
    value: object


def kept_where(where: Where) -> list[list[object]]:
    """A place as JSON: what is kept goes back to it."""
    return [["item" if at.is_item else "key", encode(at.value)] for at in where]


def where_of_kept(steps: Iterable[Sequence[object]]) -> Where:
    """A place of its JSON."""
    return tuple(At(decode(value, lambda x: x), is_item=kind == "item") for kind, value in steps)


def show(where: Where) -> str:
    """A place as a layout writes it."""
    return "".join(map(str, where)).removeprefix("/") or "/"


def listed(items: Sequence[str]) -> str:
    """The first few of many, for messages."""
    shown = ", ".join(items[:6])
    return f"{shown}, and {len(items) - 6} more" if len(items) > 6 else shown or "nothing"


def open_tree(path: Path) -> object:
    """What a file holds; tensors are references.

    Raises: ReshardError of the container.
    """
    if path.suffix == ".safetensors":
        header = read_header(path)
        tree: dict[object, object] = {
            name: TensorRef(
                str(path),
                item.byte_offset,
                item.dtype,
                item.shape,
                row_major(item.shape),
                name,
                item.nbytes // item.dtype.itemsize,
                0,
            )
            for name, item in header.tensors.items()
        }
        if header.metadata.keys() - {"format"}:
            tree["__metadata__"] = dict(header.metadata)
        return tree
    if path.suffix in (".json", ".txt", ""):
        return _text(path)
    if path.suffix == ".pkl":
        return _pickle(path)
    return open_torch_file(path).root


def _pickle(path: Path) -> object:
    """A plain pickle, whose classes are only named."""
    return read_pickle(read_file(path, PickleLimits().nbytes), str(path))


def _text(path: Path) -> object:
    data = read_file(path, _TEXT_NBYTES)
    if path.suffix != ".json":
        return data.decode("utf-8", "replace").strip()
    try:
        return load_bounded(data)
    except (UnicodeDecodeError, ValueError) as error:
        raise source_error(
            "bad-config", f"{path} is no JSON", notes=[str(error)], helps=["copy the file again"]
        ) from None


def children(node: object) -> list[tuple[At, object]]:
    """What a node of a tree holds; nothing for a value."""
    if isinstance(node, dict):
        return [(At(key), value) for key, value in node.items()]
    if isinstance(node, (list, tuple)):
        return [(At(index, is_item=True), value) for index, value in enumerate(node)]
    if isinstance(node, Record) and node.name != "_rebuild_from_type_v2":
        pairs = [*node.items, *node.attributes.items()]
        return [(At(key), value) for key, value in pairs]
    return []


def find(tree: object, place: Place) -> tuple[list[Found], int]:
    """Everything at a place, and how many keys a pattern with a hole did not cover."""
    nodes = [Found({}, (), tree)]
    missed = 0
    for step in place.steps:
        if isinstance(step, Rest):
            break
        after: list[Found] = []
        for node in nodes:
            for key, value in children(node.value):
                bound = _bound(step, key)
                if bound is None or any(node.bindings.get(k, v) != v for k, v in bound.items()):
                    missed += isinstance(step, Key) and bool(step.pattern.holes)
                    continue
                after.append(Found({**node.bindings, **bound}, (*node.where, key), value))
        nodes = after
    return nodes, missed


def _bound(step: Key | Item, key: At) -> dict[str, str | int] | None:
    if isinstance(step, Key):
        return None if key.is_item else step.pattern.match(key_text(key.value))
    if not key.is_item:
        return None
    assert isinstance(key.value, int)
    if isinstance(step.index, Hole):
        return {step.index.name: key.value}
    return {} if step.index == key.value or not isinstance(step.index, int) else None


class Account:
    """What of a tree is accounted for."""

    def __init__(self) -> None:
        self._taken: set[Where] = set()
        self._opened: set[Where] = set()

    def take(self, where: Where) -> None:
        """A place is read, with all below it."""
        self._taken.add(where)
        self._opened.update(where[:depth] for depth in range(len(where)))

    def is_taken(self, where: Where) -> bool:
        """Whether a place is read, by itself or as part of another."""
        return any(where[:depth] in self._taken for depth in range(len(where) + 1))

    def holds(self, where: Where) -> bool:
        """Whether something below a place is read."""
        return where in self._opened

    def rest(self, node: object, where: Where = ()) -> Iterator[tuple[Where, object]]:
        """The largest parts that nothing reads."""
        if where in self._taken:
            return
        below = children(node)
        if where not in self._opened and (where or not below):
            yield where, node
            return
        for key, value in below:
            yield from self.rest(value, (*where, key))


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor, or one rank's part of one."""
    return isinstance(value, TensorRef) or (
        isinstance(value, Record) and value.name == "_rebuild_from_type_v2"
    )


def tensors_in(node: object) -> Iterator[tuple[Where, object]]:
    """Every tensor below a node, with the way there."""
    if is_tensor(node):
        yield (), node
    for key, value in children(node):
        for where, ref in tensors_in(value):
            yield (key, *where), ref
