"""`verify`: a checkpoint against its own checksums, or two checkpoints against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reshard import formats
from reshard.algebra.box import Box
from reshard.api.arguments import checked
from reshard.api.comparing import (
    Mismatch,
    Side,
    compare_tensors,
    mismatch_lines,
    pair_tensors,
    pairs_nbytes,
    written_from_masters,
)
from reshard.api.junit import Case, Suite
from reshard.api.masters import find_mismatch
from reshard.api.pairing import open_pair
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.api.states import select_states
from reshard.engine.progress import Meter, Progress
from reshard.errors import Diagnostic, Exit, ReshardError, render_all
from reshard.plan.arrangement import Whole
from reshard.plan.build import Builder
from reshard.plan.plan import ArraySpec
from reshard.plan.shown import Plain, Shown
from reshard.plan.slice import slice_spec
from reshard.plan.text import show_count, show_nbytes, show_pace


@dataclass(frozen=True, slots=True, repr=False)
class Verification(
    Plain,
    Shown,
    json_keys={"left": "a", "right": "b"} | dict.fromkeys(("holding", "is_whole", "padded")),
):
    """What `verify` found.

    Args:  left, right: what was verified; right is None for one checkpoint alone.
           tensors, nbytes: (parameter, state) pairs that were read, and their bytes.
           files: that were checked, of one checkpoint alone.
           mismatches: of two checkpoints.  faults: of one.
           warnings: of what is odd, and no fault.
           unchecked: of one, files with tensors that have none; there copies alone were compared.
           holding: of one, number of files with tensors.
           is_whole: of one, whether one list has a digest of every byte of it.
           seconds: what the reading took.
           padded: tensors that are equal but for rows of zeros, which pad the vocabulary of one.
    """

    left: str
    right: str | None
    tensors: int
    nbytes: int
    files: int
    mismatches: tuple[Mismatch, ...] = ()
    faults: tuple[Diagnostic, ...] = ()
    unchecked: tuple[str, ...] = ()
    holding: int = 0
    is_whole: bool = False
    seconds: float = 0.0
    warnings: tuple[Diagnostic, ...] = ()
    padded: int = 0

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        return {**Plain.to_json(self), "checksums": self.checksums}

    @property
    def checksums(self) -> bool:
        """Whether the bytes of all tensors have checksums."""
        return not self.unchecked

    @property
    def ok(self) -> bool:
        """Nothing differs."""
        return not self.mismatches and not self.faults

    @property
    def exit_code(self) -> Exit:
        """6 if anything differs, else 0."""
        return Exit.OK if self.ok else Exit.DIFFERENCE

    @property
    def title(self) -> str:
        """What was verified."""
        return self.left if self.right is None else f"{self.left} and {self.right}"

    def suites(self, seconds: float) -> tuple[Suite, ...]:
        """For continuous integration: one test case."""
        name = "equal bit for bit"
        if self.right is None:
            single = "checksums" if self.checksums else "readable"
            name = "as it was written" if self.is_whole else single
        head, _, rest = self.to_text().partition("\n")
        failure = None if self.ok else (head, rest)
        return (Suite(self.title, self.left, (Case(name, failure),), seconds),)

    def to_text(self) -> str:
        """For people, 80 columns wide."""

        return verification_text(self)


@checked
def verify(
    a: PathLike,
    b: PathLike | None = None,
    *,
    states: str | Iterable[str] = "all",
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
    step: str | None = None,
    dtype: str | None = None,
    config: PathLike | None = None,
    leave_out: Iterable[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Read everything, and say what is not as it must be.

    Args:  a: checked against its own digests (universal) or checksums (DeepSpeed), and its copies
           against each other; or, when there is a `b`, compared with it bit for bit, whatever
           the formats.
           states: `all`, `weights`, or kinds of state, of both sides.
           layout, layout_name, step: as for `open`, of `a`.
           dtype, config, leave_out: as for `convert`, of `a`: what it was made into `b` with.
           settings, model, names: as for `open`, of both sides. Two checkpoints of one model that
           name their tensors otherwise are compared in the names of `a`.
           on_progress: is called now and then.
    Raises: ReshardError when something cannot be read at all; what differs is in the result.
    """
    request = Request.of(locals())
    if b is None:
        return _verify_one(open_source(a, request), request)
    return _verify_two(*open_pair(a, b, request), request)


def _verify_one(source: OpenedSource, request: Request) -> Verification:
    from reshard.engine.compare import digest_array

    began = time.monotonic()
    catalog = source.catalog
    arrangement = select_states(source, request.states).arrangement
    builder = Builder(arrangement, "error")
    arrays = [builder.array(_spec(whole)) for whole in arrangement.wholes]
    copied = [array for array in arrays if any(box.mode == "agree" for box in array.boxes)]
    nbytes = sum(file.nbytes for file in catalog.files)
    meter = Meter(request.on_progress, nbytes + sum(array.spec.nbytes for array in copied))
    result = formats.check_bytes(catalog.format, catalog, meter.add)
    faults, warnings = [*result.faults], [*result.warnings]
    with source.files() as files:
        for array in copied:
            try:
                digest_array(array, files)
            except ReshardError as error:
                faults += error.diagnostics
            meter.add(array.spec.nbytes, array.spec.label)
        if not faults:
            mismatch = find_mismatch(arrangement, files, full=True)
            if mismatch is not None:
                (faults if mismatch.level == "error" else warnings).append(mismatch)
    return Verification(
        str(source.path),
        None,
        len(arrangement.wholes),
        sum(file.nbytes for file in catalog.files),
        len(catalog.files),
        faults=tuple(faults),
        unchecked=result.unchecked,
        holding=result.holding,
        is_whole=result.is_whole,
        seconds=time.monotonic() - began,
        warnings=tuple(warnings),
    )


def _verify_two(left: OpenedSource, right: OpenedSource, request: Request) -> Verification:
    began = time.monotonic()
    pairs = written_from_masters(pair_tensors(left, right, request.states))
    sides = (Side.of(left), Side.of(right))
    mismatches: list[Mismatch] = []
    nbytes = pairs_nbytes(pairs)
    meter = Meter(request.on_progress, sum(nbytes))
    padded = 0
    with sides[0].files, sides[1].files:
        for (one, other), count in zip(pairs, nbytes, strict=True):
            mismatch = compare_tensors(one, sides[0], other, sides[1])
            if mismatch is not None:
                mismatches.append(mismatch)
            elif one is not None and other is not None and one.shape != other.shape:
                padded += 1
            meter.add(count)
    return Verification(
        str(left.path),
        str(right.path),
        len(pairs),
        sum(nbytes),
        0,
        mismatches=tuple(mismatches),
        seconds=time.monotonic() - began,
        padded=padded,
    )


def _spec(whole: Whole) -> ArraySpec:
    return slice_spec(whole, Box.whole(whole.shape))


def verification_text(result: Verification) -> str:
    """The answer of `reshard verify`, 80 columns wide."""
    if result.right is None:
        warnings = f"\n\n{render_all(result.warnings)}" if result.warnings else ""
        return _one(result) + warnings
    if result.ok:
        what = f"{show_count(result.tensors, 'tensor')}, {show_nbytes(result.nbytes)}"
        lines = [f"equal bit for bit: {what}"]
    else:
        lines = [f"different: {len(result.mismatches):,} of {show_count(result.tensors, 'tensor')}"]
    lines += [f"  A  {result.left}", f"  B  {result.right}"]
    if result.padded:
        lines.append(
            f"  {show_count(result.padded, 'tensor')} with different vocabulary padding: one side "
            "has extra rows of zeros"
        )
    lines.append(f"  {show_pace(2 * result.nbytes, result.seconds)}")
    lines += mismatch_lines(result.mismatches)
    return "\n".join(lines)


def _one(result: Verification) -> str:
    pace = show_pace(result.nbytes, result.seconds)
    if result.faults:
        count = show_count(len(result.faults), "fault")
        return f"damaged: {count} in {result.left}\n  {pace}\n\n{render_all(result.faults)}"
    tensors = show_count(result.tensors, "tensor")
    files = f"{show_count(result.files, 'file')}, {show_nbytes(result.nbytes)}"
    if result.is_whole:
        lines = [
            f"intact: {result.left}",
            f"  {tensors} in {files}: every byte as it was written",
        ]
    elif result.checksums:
        lines = [
            f"intact: {result.left}",
            f"  {tensors} in {files}: every file matches its own checksums,",
            "  but no checksum covers the set of files",
        ]
    elif len(result.unchecked) == result.holding:
        lines = [
            f"readable: {result.left}",
            f"  {tensors}; every file is complete, and copies agree, but",
            "  the format has no checksums: changed bytes would go unnoticed",
        ]
    else:
        some = f"{len(result.unchecked):,} of {show_count(result.holding, 'file')} with tensors"
        lines = [
            f"readable: {result.left}",
            f"  {tensors}; every file is complete, copies agree, and existing checksums",
            f"  match; {some} have no checksum, e.g.",
            f"  `{result.unchecked[0]}`: changed bytes would go unnoticed there",
        ]
    return "\n".join([*lines, f"  {pace}"])
