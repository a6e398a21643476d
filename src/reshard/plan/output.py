"""What a format hands to the engine: arrays with their places, and the bytes around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic
from reshard.plan.plan import ArraySpec, Placed


@dataclass(frozen=True, slots=True)
class PlacedSpec:
    """An array that is wanted and the place where it goes; the planner adds the copies.

    Args:  file: relative to the destination.  byte_offset: absolute.
           digest, crc: what is computed of its bytes while they are written.
    """

    spec: ArraySpec
    file: str
    byte_offset: int
    digest: bool = True
    crc: bool = False


@dataclass(frozen=True, slots=True)
class FileBytes:
    """Bytes that are written as they are: a header, a pickle, a whole small file."""

    file: str
    byte_offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """What is known of one placed array after it was written."""

    placed: Placed
    digest: str | None
    crc: int | None


@dataclass(frozen=True, slots=True)
class Output:
    """A whole destination.

    Args:  placed: every array, in output order.
           files: every file that holds an array, with its total size in bytes.
           head: bytes that do not depend on tensor data.
           finish: given what was written (same order as `placed`), the rest; the last item is
                   written last and marks the folder as complete.
           warnings: what the target cannot carry or its loader will not restore, with the remedy.
           dropped: (name, state, why) of every source tensor that the target has no place for.
           beside: the folder of the target, ending with `/` or empty, where side files of the
                   source go as they are; None if the target has them among its own files.
           elsewhere: side files that have another name there, by the one that they have.
           made_last: names of the files of `finish` that a side file might have.
           folded: (name, state, as what) of every source tensor that is in the target, but has no
                   array of its own: a number that several parameters share.
           makes_weights: besides master weights it has weights that are made of them, which the
                   source does not store.
    """

    placed: tuple[PlacedSpec, ...]
    files: Mapping[str, int]
    head: tuple[FileBytes, ...]
    finish: Callable[[Sequence[Written]], tuple[FileBytes, ...]]
    warnings: tuple[Diagnostic, ...] = ()
    dropped: tuple[tuple[str, str, str], ...] = ()
    folded: tuple[tuple[str, str, str], ...] = ()
    beside: str | None = None
    made_last: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    makes_weights: bool = False
