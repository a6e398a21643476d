"""A value of a checkpoint file and where it stands, so that a surprise names its place; numbers;
and the errors of files that do not fit together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.plan.names import some
from reshard.storage.inert import Record
from reshard.storage.numbers import number_in, plain_number
from reshard.storage.torch_file import TensorRef, read_small


@dataclass(frozen=True, slots=True)
class Node:
    """One object of the tree that a file holds.

    Args:  file: relative to the checkpoint's folder.  path: keys from the root, `.` between them.
    """

    value: object
    file: str
    path: str = ""

    @property
    def is_none(self) -> bool:
        """Whether the value is None."""
        return self.value is None

    def _child(self, key: object, value: object) -> Node:
        return Node(value, self.file, f"{self.path}.{key}" if self.path else f"{key}")

    def mapping(self) -> dict[object, object]:
        """The value as a dict."""
        if not isinstance(self.value, dict):
            raise self._unlike("a dict")
        return self.value

    def fields(self) -> Node:
        """The attributes of an object as a dict; anything else as it is."""
        value = self.value
        return replace(self, value=value.attributes) if isinstance(value, Record) else self

    def sequence(self) -> list[object] | tuple[object, ...]:
        """The value as a list or tuple."""
        if not isinstance(self.value, list | tuple):
            raise self._unlike("a list")
        return self.value

    @property
    def is_dict(self) -> bool:
        """Whether the value is a dict."""
        return isinstance(self.value, dict)

    def has(self, key: object) -> bool:
        """Whether the value is a dict with this key."""
        return isinstance(self.value, dict) and key in self.value

    def get(self, key: object) -> Node | None:
        """The value of a key, or None where the key is missing or its value is None."""
        value = self.mapping().get(key)
        return None if value is None else self._child(key, value)

    def at(self, key: object) -> Node:
        """The value of a key.  Raises: ReshardError[missing-key]."""
        node = self.get(key)
        if node is None:
            raise self.lacks(key)
        return node

    def find(self, *keys: str) -> Node | None:
        """What lies behind several keys, or None where one of them is missing or None."""
        node: Node | None = self
        for key in keys:
            node = None if node is None else node.get(key)
        return node

    def lacks(self, key: object) -> ReshardError:
        """The error for a key that must be there."""
        return source_error(
            "missing-key",
            f"{self._name()} has no `{key}`",
            notes=[f"it has {some((f'`{key}`' for key in self.mapping()), 12)}"],
            helps=["the file was written by another program, or by a version that is not known"],
        )

    def item(self, index: int) -> Node:
        """One item of a list."""
        items = self.sequence()
        if index >= len(items):
            raise unexpected(f"{self._name()} has {len(items)} items, not {index + 1}")
        return self._child(index, items[index])

    def entries(self) -> Iterator[tuple[str, Node]]:
        """Keys (as text) and values of a dict, in its order."""
        for key, value in self.mapping().items():
            yield str(key), self._child(key, value)

    def items(self) -> Iterator[Node]:
        """The items of a list."""
        for index, value in enumerate(self.sequence()):
            yield self._child(index, value)

    def integer(self) -> int:
        """The value as an int; an enum's member counts as its number."""
        value = self.value
        if isinstance(value, Record) and value.how == "reduce" and len(value.args) == 1:
            value = value.args[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unlike("an integer")
        return value

    def integers(self) -> tuple[int, ...]:
        """The value as a list of integers."""
        return tuple(item.integer() for item in self.items())

    def text(self) -> str:
        """The value as a string."""
        if not isinstance(self.value, str):
            raise self._unlike("a string")
        return self.value

    def shape(self) -> tuple[int, ...]:
        """The value as a shape."""
        value = self.value
        if not isinstance(value, tuple | list) or not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
        ):
            raise self._unlike("a shape")
        return tuple(int(n) for n in value if isinstance(n, int))

    def tensor(self) -> TensorRef:
        """The value as a tensor."""
        if not isinstance(self.value, TensorRef):
            raise self._unlike("a tensor")
        return self.value

    def _name(self) -> str:
        return f"`{self.path}` of {self.file}" if self.path else self.file

    def _unlike(self, wanted: str) -> ReshardError:
        return unexpected(f"{self._name()} is {_kind(self.value)}, not {wanted}")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, Record):
        return f"a {value.module}.{value.name}"
    name = "tensor" if isinstance(value, TensorRef) else type(value).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number as one file holds it.

    Args:  data: little-endian bytes.  byte_offset: where they lie, None for a number in a pickle.
    """

    dtype: DType
    data: bytes
    file: str
    byte_offset: int | None

    def local(self, name: str, state: str, coord: Coord) -> LocalTensor:
        """The number as a tensor of shape ()."""
        literal = self.data if self.byte_offset is None else None
        fragment = Fragment(0, 1, self.file, self.byte_offset or 0, None, literal)
        return LocalTensor(name, state, coord, (), self.dtype, (fragment,))

    def __str__(self) -> str:
        number = number_in(self.dtype, self.data)
        return f"0x{self.data[::-1].hex()}" if number is None else f"{number:g}"


def scalar_of(node: Node | None) -> Scalar | None:
    """The number that a value is; None when it is not one."""
    if node is None:
        return None
    value, file = node.value, node.file
    if isinstance(value, TensorRef):
        is_one = value.shape == ()
        return Scalar(value.dtype, read_small(value), file, value.byte_offset) if is_one else None
    number = plain_number(value)
    return None if number is None else Scalar(*number, file, None)


# Errors, each kind with its one advice.


def mixed_runs(headline: str, *notes: str) -> ReshardError:
    """Files that were not written together."""
    advice = "copy the files of one step of one run into a folder of their own"
    return source_error("mixed-runs", headline, notes=notes, helps=[advice])


def not_one_run(one: str, two: str, *notes: str) -> ReshardError:
    """Two files of different runs."""
    return mixed_runs(f"{one} and {two} are not of one run", *notes)


def missing_rank_file(headline: str, *notes: str) -> ReshardError:
    """A file of a rank, a layer, or an expert that is not there."""
    advice = "copy the files of all ranks; on several machines each one has only its own"
    return source_error("missing-rank-file", headline, notes=notes, helps=[advice])


def partition_mismatch(
    headline: str,
    *notes: str,
    advice: str = "the files may be of different runs or steps; copy those of one",
) -> ReshardError:
    """Partitions that are not those of the parameters that a model file names."""
    return source_error("partition-mismatch", headline, notes=notes, helps=[advice])


def ranks_disagree(what: str, one: str, file: str, two: str, other: str) -> ReshardError:
    """A value that is not the same in the files of two ranks."""
    return source_error(
        "ranks-disagree",
        f"ranks disagree about {what}: {one}, and {two}",
        notes=[f"{one} in {file}", f"{two} in {other}"],
        helps=["the files may be of different runs or steps; copy those of one"],
    )


def unexpected(headline: str, *notes: str) -> ReshardError:
    """A value of another kind than DeepSpeed writes."""
    advice = "the file was written by another program, or by a version that is not known"
    return source_error("unexpected-content", headline, notes=notes, helps=[advice])


def unsupported_experts(headline: str, *notes: str) -> ReshardError:
    """A placement of experts that is not read."""
    advice = "load the checkpoint and save it with experts in order, as many on every rank"
    return source_error("unsupported-experts", headline, notes=notes, helps=[advice])
