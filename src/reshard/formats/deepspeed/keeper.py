"""Keeps objects of a checkpoint as JSON, and tells which entries of two files differ."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.formats.deepspeed.node import Node
from reshard.storage import kept
from reshard.storage.kept import fingerprint


class Keeper(kept.Keeper):
    """Keeps the values of nodes."""

    def json(self, node: Node, name: str) -> object:
        """The value of a node, which refers to its tensors by name."""
        return self.keep(node.value, name, node.file)

    def node_setting(self, node: Node, name: str) -> object:
        """The value of a node that other frameworks understand too: small tensors with bytes."""
        return self.setting(node.value, name, node.file)


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
