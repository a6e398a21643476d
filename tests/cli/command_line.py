"""What the tests of the command line say about its use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Run(Protocol):
    """Runs one command line (fixture `run`)."""

    def __call__(self, *words: str) -> Said: ...


Case = Callable[[str], str]
"""From a case of fixtures/ to the relative path of its checkpoint (fixture `case`)."""

Golden = Callable[[str, str], None]
