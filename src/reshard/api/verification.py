"""`verify`: a checkpoint against its own checksums, or two checkpoints against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from reshard import formats
from reshard.algebra.box import Box
from reshard.api.source import OpenedSource, PathLike, open_source
from reshard.api.states import select_states
from reshard.errors import Diagnostic, ReshardError
from reshard.plan.arrangement import Whole
from reshard.plan.build import Builder
from reshard.plan.plan import ArraySpec
from reshard.plan.slice import slice_spec

if TYPE_CHECKING:
    from reshard.engine.run import Progress
    from reshard.engine.source_files import SourceFiles


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One state of one parameter that is not the same on both sides.

    Args:  what: "only in A", "only in B", "shape", "dtype", or "values".
           left, right: shape or element type, where these differ.
           numel, numel_different: of all elements, how many differ.
           first_index: of the first one, flat and row-major.  max_abs: largest difference of
                        values; None where it is not a number.
    """

    name: str
    state: str
    what: str
    left: str = ""
    right: str = ""
    numel: int = 0
    numel_different: int = 0
    first_index: int = 0
    max_abs: float | None = None

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        out: dict[str, object] = {"name": self.name, "state": self.state, "what": self.what}
        if self.left:
            out |= {"a": self.left, "b": self.right}
        if self.what == "values":
            out |= {
                "elements": self.numel,
                "elements_different": self.numel_different,
                "first_index": self.first_index,
                "max_abs": self.max_abs,
            }
        return out


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Args:  left, right: what was verified; right is None for one checkpoint alone.
           tensors, nbytes: (parameter, state) pairs that were read, and their bytes.
           files: that were checked, of one checkpoint alone.
           mismatches: of two checkpoints.  faults: of one.
    """

    left: str
    right: str | None
    tensors: int
    nbytes: int
    files: int
    mismatches: tuple[Mismatch, ...] = ()
    faults: tuple[Diagnostic, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing differs."""
        return not self.mismatches and not self.faults

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {
            "a": self.left,
            "b": self.right,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "files": self.files,
            "mismatches": [item.to_json() for item in self.mismatches],
            "faults": [item.to_json() for item in self.faults],
        }

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        from reshard.api.verification_text import verification_text

        return verification_text(self)


def verify(
    a: PathLike,
    b: PathLike | None = None,
    *,
    states: str | Iterable[str] = "all",
    layout: PathLike | None = None,
    layout_name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Read everything, and say what is not as it must be.

    Args:  a: checked against its own digests (universal) or checksums (DeepSpeed), and its copies
           against each other; or, when there is a `b`, compared with it bit for bit, whatever
           the formats.
           states: `all`, `weights`, or kinds of state, of both sides.
           layout, layout_name: as for `open`, of `a`.
           on_progress: is called now and then.
    Raises: ReshardError when something cannot be read at all; what differs is in the result.
    """
    left = open_source(a, layout=layout, layout_name=layout_name)
    if b is None:
        return _verify_one(left, states, on_progress)
    return _verify_two(left, open_source(b), states, on_progress)


def _verify_one(
    source: OpenedSource,
    states: str | Iterable[str],
    on_progress: Callable[[Progress], None] | None,
) -> Verification:
    from reshard.engine.compare import digest_array

    catalog = source.catalog
    arrangement = select_states(source, states).arrangement
    faults = list(formats.check_bytes(catalog.format, catalog))
    builder = Builder(arrangement, "error")
    with _files(source) as files:
        for whole in arrangement.wholes:
            array = builder.array(_spec(whole))
            if any(copy.mode == "agree" for copy in array.copies):
                try:
                    digest_array(array, files)
                except ReshardError as error:
                    faults += error.diagnostics
    return Verification(
        str(source.path),
        None,
        len(arrangement.wholes),
        sum(file.nbytes for file in catalog.files),
        len(catalog.files),
        faults=tuple(faults),
    )


def _verify_two(
    left: OpenedSource,
    right: OpenedSource,
    states: str | Iterable[str],
    on_progress: Callable[[Progress], None] | None,
) -> Verification:
    from reshard.engine.compare import compare

    pairs = _pair(left, right, states)
    builders = (Builder(left.arrangement, "error"), Builder(right.arrangement, "error"))
    mismatches: list[Mismatch] = []
    nbytes = 0
    with _files(left) as left_files, _files(right) as right_files:
        for one, other in pairs:
            if one is None or other is None:
                mismatches.append(_missing(one, other))
                continue
            nbytes += prod(one.shape) * one.dtype.itemsize
            found = _shapes(one, other)
            if found is None:
                difference = compare(
                    builders[0].array(_spec(one)),
                    left_files,
                    builders[1].array(_spec(other)),
                    right_files,
                )
                if difference is None:
                    continue
                found = Mismatch(
                    one.name,
                    one.state,
                    "values",
                    numel=prod(one.shape),
                    numel_different=difference.numel_different,
                    first_index=difference.first_index,
                    max_abs=difference.max_abs,
                )
            mismatches.append(found)
    return Verification(
        str(left.path), str(right.path), len(pairs), nbytes, 0, mismatches=tuple(mismatches)
    )


def _pair(
    left: OpenedSource, right: OpenedSource, states: str | Iterable[str]
) -> list[tuple[Whole | None, Whole | None]]:
    """Tensors of both sides by name and state, in the order of the left; what only the right has
    comes last."""
    sides = [
        {(w.name, w.state): w for w in select_states(side, states).arrangement.wholes}
        for side in (left, right)
    ]
    aliases = [dict(side.catalog.aliases or {}) for side in (left, right)]
    pairs: list[tuple[Whole | None, Whole | None]] = []
    used = set()
    for (name, state), whole in sides[0].items():
        key = (name, state)
        if key not in sides[1]:
            key = (aliases[1].get(name, name), state)
        used.add(key)
        pairs.append((whole, sides[1].get(key)))
    for (name, state), whole in sides[1].items():
        if (name, state) not in used:
            pairs.append((sides[0].get((aliases[0].get(name, name), state)), whole))
    return pairs


def _shapes(one: Whole, other: Whole) -> Mismatch | None:
    if one.shape != other.shape:
        return Mismatch(one.name, one.state, "shape", str(list(one.shape)), str(list(other.shape)))
    if one.dtype != other.dtype:
        return Mismatch(one.name, one.state, "dtype", str(one.dtype), str(other.dtype))
    return None


def _missing(one: Whole | None, other: Whole | None) -> Mismatch:
    here = one or other
    assert here is not None
    return Mismatch(here.name, here.state, "only in A" if other is None else "only in B")


def _spec(whole: Whole) -> ArraySpec:
    return slice_spec(whole, Box.whole(whole.shape))


def _files(source: OpenedSource) -> SourceFiles:
    from reshard.engine.source_files import SourceFiles

    return SourceFiles(source.catalog.root, source.catalog.files)
