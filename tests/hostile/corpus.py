"""The list of bad inputs: each a function that writes a small folder, and the command it meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path], None]
CONVERT = ("convert", "src", "dst", "--to", "universal")
CANARY = "canary"
"""A file that exists only if something was executed."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """One bad input.

    Args:  build: writes `src` into a folder.  words: the command line, which runs in that folder.
    """

    name: str
    group: str
    build: Build
    words: tuple[str, ...]


class Corpus:
    """The bad inputs of one group."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.cases: list[BadInput] = []

    def add(self, name: str, build: Build, *words: str) -> None:
        """One more, by name."""
        self.cases.append(BadInput(name, self.group, build, words or CONVERT))

    def case(self, *words: str) -> Callable[[Build], Build]:
        """One more, named after the function that writes it."""

        def note(build: Build) -> Build:
            self.add(build.__name__, build, *words)
            return build

        return note
