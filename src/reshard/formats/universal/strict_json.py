"""JSON that says one thing: no key twice, no numbers that JSON does not have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.storage.bounded_json import load_bounded

MAX_FAULTS = 100
"""Faults that are collected of one file; a message shows fewer."""


def load_json(data: bytes, where: str) -> object:
    """The value of a JSON file.

    Args:  where: the file, for messages.
    Raises: ReshardError[bad-manifest].
    """
    try:
        return load_bounded(data)
    except ValueError as error:
        raise bad_manifest([f"`{where}` is not JSON: {error}"]) from None


def bad_manifest(headlines: Iterable[str], notes: Iterable[str] = ()) -> ReshardError:
    """The error for faults of a manifest, or of the JSON files beside it."""
    lines = tuple(notes)
    return ReshardError(
        [Diagnostic("bad-manifest", headline, notes=lines) for headline in headlines], Exit.SOURCE
    )


class Node:
    """A JSON value with its place, whose typed views note what is not as it must be.

    Args:  path: like `tensors.w.param.shape`.  faults: where headlines are added.
    """

    __slots__ = ("faults", "path", "value")

    def __init__(self, value: object, path: str, faults: list[str]) -> None:
        self.value = value
        self.path = path
        self.faults = faults

    def fault(self, wanted: str) -> None:
        """Note that the value is not what is wanted."""
        if len(self.faults) < MAX_FAULTS:
            shown = _shown(self.value)
            self.faults.append(f"`{self.path}` in `manifest.json` is {shown}, not {wanted}")

    def fields(self, required: tuple[str, ...]) -> dict[str, Node] | None:
        """The members of an object with exactly these keys; None if it is not one."""
        members = self.members()
        if members is None:
            return None
        for key in required:
            if key not in members:
                self._note(f"`{self._at(key)}` is missing in `manifest.json`")
        for key in members:
            if key not in required:
                self._note(f"`{self._at(key)}` in `manifest.json` is no key of format version 1")
        return members if members.keys() == set(required) else None

    def members(self) -> dict[str, Node] | None:
        """The members of an object; None if it is not one."""
        if not isinstance(self.value, dict):
            self.fault("an object")
            return None
        return {k: Node(v, self._at(k), self.faults) for k, v in self.value.items()}

    def items(self) -> list[Node]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.fault("a list")
            return []
        return [Node(v, f"{self.path}[{i}]", self.faults) for i, v in enumerate(self.value)]

    def text(self) -> str:
        """A string that is not empty."""
        if isinstance(self.value, str) and self.value:
            return self.value
        self.fault("a string")
        return ""

    def texts(self) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(item.text() for item in self.items())

    def integer(self) -> int:
        """A whole number, zero or more, that fits into 63 bits."""
        value = self.value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return value
        self.fault("a whole number")
        return 0

    def integers(self) -> tuple[int, ...]:
        """A list of such numbers."""
        return tuple(item.integer() for item in self.items())

    def mapping(self) -> Mapping[str, object] | None:
        """An object with any contents, or null."""
        if self.value is None or isinstance(self.value, dict):
            return self.value
        self.fault("an object or null")
        return None

    def mappings(self) -> tuple[Mapping[str, object], ...]:
        """A list of objects with any contents."""
        out = []
        for item in self.items():
            if isinstance(item.value, dict):
                out.append(item.value)
            else:
                item.fault("an object")
        return tuple(out)

    def _at(self, key: str) -> str:
        shown = key if key.isprintable() else repr(key)[1:-1]
        return f"{self.path}.{shown}" if self.path else shown

    def _note(self, text: str) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(text)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "too deep a value"
    return text if len(text) <= 60 else text[:57] + "..."
