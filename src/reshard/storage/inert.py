"""What a pickle names without it being imported: classes, and objects of classes, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

How = Literal["reduce", "newobj", "newobj_ex", "inst"]


@dataclass(frozen=True, slots=True)
class Global:
    """A module attribute that a pickle refers to; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object that a pickle builds, with all that is needed to write it back.

    Args:  module, name: of the callable or class.  args: of its call; for `newobj_ex` the last item
           is the dict of keyword arguments.
           how: the way it is made.  state: what BUILD sets, in order.
           items: keys and values that SETITEMS sets.  appended: what APPENDS appends.
    """

    module: str
    name: str
    args: tuple[object, ...]
    how: How = "reduce"
    state: list[object] = field(default_factory=list)
    items: list[tuple[object, object]] = field(default_factory=list)
    appended: list[object] = field(default_factory=list)

    @property
    def attributes(self) -> dict[object, object]:
        """What the states set by name: the object's `__dict__` as far as it is plain."""
        out: dict[object, object] = {}
        for state in self.state:
            parts = state if isinstance(state, tuple) else (state,)
            for part in parts:
                if isinstance(part, dict):
                    out.update(part)
        return out

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Size(tuple[int, ...]):
    """A `torch.Size`."""

    __slots__ = ()
