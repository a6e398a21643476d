"""How a public value shows itself: as JSON, in a line of Python, and as its text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar


def plain(value: object) -> object:
    """A value as JSON has it: fields and mappings as objects, sequences as lists."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    return str(value) if isinstance(value, StrEnum | Path) else value


class Plain:
    """A dataclass whose JSON form is its fields; `seconds` are rounded.

    Args:  json_keys: what fields are called there, where that is another name; None for those that
                      are not in it.
    """

    __slots__ = ()

    json_keys: ClassVar[Mapping[str, str | None]] = {}

    def __init_subclass__(cls, json_keys: Mapping[str, str | None] | None = None) -> None:
        if json_keys is not None:
            cls.json_keys = json_keys

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        out: dict[str, object] = {}
        for name in (item.name for item in fields(self)):  # type: ignore[arg-type]
            key = self.json_keys.get(name, name)
            if key is not None:
                value = getattr(self, name)
                out[key] = round(value, 3) if name == "seconds" else plain(value)
        return out


class Shown(ABC):
    """A value with a text for people, whose `repr` is one short line of it."""

    __slots__ = ()

    @abstractmethod
    def to_text(self) -> str:
        """For people, 80 columns wide."""

    def summary(self) -> str:
        """The value in a few words: the first line of its text."""
        return self.to_text().partition("\n")[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def _repr_html_(self) -> str:
        """The text, for a notebook."""
        from html import escape

        return f"<pre>{escape(self.to_text())}</pre>"
