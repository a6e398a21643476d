"""Keeps objects of a checkpoint as JSON, and the tensors inside of them as tensors of no rule."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.weights import tensor_of
from reshard.plan.catalog import LocalTensor
from reshard.storage.objects import to_json
from reshard.storage.small_tensors import fingerprint, small_tensor
from reshard.storage.torch_file import TensorRef

EXTRA = "extra"
_MAX_SETTING = 1 << 10


class Keeper:
    """Makes JSON values, and collects the tensors that they refer to by name."""

    def __init__(self) -> None:
        self.tensors: list[LocalTensor] = []
        self._names: dict[TensorRef, str] = {}
        self._taken: set[str] = set()

    def json(self, node: Node, name: str) -> object:
        """The value of a node.

        Args:  name: what tensors inside of it are called, with a number behind from the second on.
        """

        def tensor(ref: TensorRef) -> object:
            known = self._names.get(ref)
            if known is None:
                known = self._free(name)
                self._names[ref] = known
                self.tensors.append(tensor_of(ref, known, EXTRA, (), node.file))
            return {"$tensor": known}

        return to_json(node.value, tensor)

    def setting(self, node: Node, name: str) -> object:
        """The value of a node that other frameworks understand too: with its small tensors' bytes.

        Args:  name: what larger tensors inside of it are called.
        """

        def tensor(ref: TensorRef) -> object:
            if ref.nbytes > _MAX_SETTING:
                return self.json(Node(ref, node.file, node.path), name)
            return small_tensor(ref)

        return to_json(node.value, tensor)

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._taken:
            number += 1
            free = f"{name}.{number}"
        self._taken.add(free)
        return free


def differing(first: Mapping[str, Node], other: Mapping[str, Node]) -> list[str]:
    """Keys whose values are not equal, or that one side lacks."""
    out = []
    for key in dict.fromkeys((*first, *other)):
        a, b = first.get(key), other.get(key)
        if a is None or b is None or not _same(a.value, b.value):
            out.append(key)
    return out


def _same(first: object, second: object) -> bool:
    plain = (type(None), bool, int, float, str)
    if isinstance(first, plain) and isinstance(second, plain):
        return type(first) is type(second) and repr(first) == repr(second)
    return fingerprint(first) == fingerprint(second)
