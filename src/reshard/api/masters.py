"""Master weights beside weights: both must be of one step of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.algebra.box import Box
from reshard.api.comparing import unravel
from reshard.api.source import OpenedSource
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.build import Builder, OnDrift
from reshard.plan.output import Output
from reshard.plan.slice import slice_spec
from reshard.run.states import MASTER, PARAM

if TYPE_CHECKING:
    from reshard.store.source_files import SourceFiles

CODE = "master-mismatch"

LEAST = 16
"""Fewer elements of a file are no proof."""


def check_masters(
    source: OpenedSource, arrangement: Arrangement, on_drift: OnDrift, *, full: bool = False
) -> tuple[Diagnostic, ...]:
    """A warning where master weights of a source do not round to its weights.

    Args:  arrangement: the part of it that is used.
           on_drift: an error, or a warning.
           full: as for `find_mismatch`.
    Raises: ReshardError[master-mismatch].
    """
    if not _pairs(arrangement):
        return ()
    # A mean of copies is the master of none of them.
    how: OnDrift = "error" if on_drift == "error" else "first"
    with source.files() as files:
        mismatch = find_mismatch(arrangement, files, on_drift=how, full=full)
    if mismatch is None:
        return ()
    if mismatch.level == "error" and on_drift == "error":
        keep = "keep only the weights with `--states weights`, or both with `--on-drift first`"
        raise ReshardError(replace(mismatch, helps=(*mismatch.helps, keep)), Exit.SOURCE)
    return (replace(mismatch, level="warning"),)


def with_versions(
    source: OpenedSource, arrangement: Arrangement, output: Output
) -> tuple[OpenedSource, Output]:
    """A warning of differing master weights says which of the two a target has, if not both."""
    masters = {whole.name for whole in arrangement.wholes if whole.state == MASTER}
    lost = {
        name
        for name, state, _ in (*output.dropped, *output.folded)
        if state == PARAM and name in masters
    } - {name for name, state, _ in output.dropped if state == MASTER}
    if not lost or all(item.code != CODE for item in source.catalog.oddities):
        return source, output
    helps = (
        "the master weights are written, and the weights that differ from them are not",
        "to write the weights instead, use `--states weights`",
    )
    oddities = tuple(
        replace(item, helps=(*item.helps, *helps)) if item.code == CODE else item
        for item in source.catalog.oddities
    )
    folded = tuple(
        (name, state, "the master weights, which are not the same in all tensors")
        if state == PARAM and name in masters
        else (name, state, how)
        for name, state, how in output.folded
    )
    source = source.with_catalog(replace(source.catalog, oddities=oddities))
    return source, replace(output, folded=folded)


def find_mismatch(
    arrangement: Arrangement,
    files: SourceFiles,
    *,
    on_drift: OnDrift = "error",
    full: bool = False,
) -> Diagnostic | None:
    """What is wrong with master weights that do not round to the weights beside them.

    It is an error where most of what some file holds, masters or weights, does not agree with
    the others: it is of another run.  Where less does not, it is a warning.

    Args:  full: read all of both; else samples of everything that is stored in one piece.
    Raises: ReshardError for files that cannot be read, and copies that differ.
    """
    from reshard.engine.gather import Gatherer
    from reshard.engine.masters import Apart, hold_masters

    builder, gatherer = Builder(arrangement, on_drift), Gatherer(files)
    pairs = _pairs(arrangement)
    differences: dict[str, Apart] = {}
    looked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for name, (weight, master) in pairs.items():
        sides = (slice_spec(whole, Box.whole(whole.shape)) for whole in (weight, master))
        one, other = (builder.array(spec) for spec in sides)
        result = hold_masters(one, other, files, gatherer, full=full)
        looked.update(result.looked)
        wrong.update(result.wrong)
        if result.apart is not None:
            differences[name] = result.apart
    if not differences:
        return None
    name, first = next(iter(differences.items()))
    foreign = [file for file, count in looked.items() if count >= LEAST and 2 * wrong[file] > count]
    sound = [file for file in looked if file not in wrong]
    return Diagnostic(
        CODE,
        f"the master weights of {len(differences)} of {len(pairs)} tensors do not round to the "
        "weights",
        level="error" if foreign else "warning",
        notes=(
            f"the first is `{name}`, at {list(unravel(first.index, pairs[name][0].shape))}:",
            f"the weight is {first.weight.value} in {first.weight.place}",
            f"the master weight is {first.master.value} in {first.master.place}",
            *([f"in {len(sound)} other files they do"] if sound else []),
        ),
        helps=("make sure that all files are from one step of one run",),
    )


def _pairs(arrangement: Arrangement) -> Mapping[str, tuple[Whole, Whole]]:
    """Weights and their master weights, where one is the other rounded."""
    from reshard.engine.masters import MASTERS, WEIGHTS

    masters = {w.name: w for w in arrangement.wholes if w.state == MASTER}
    return {
        whole.name: (whole, masters[whole.name])
        for whole in arrangement.wholes
        if whole.state == PARAM
        and whole.name in masters
        and whole.shape == masters[whole.name].shape
        and whole.dtype in WEIGHTS
        and masters[whole.name].dtype in MASTERS
        and whole.dtype.itemsize <= masters[whole.name].dtype.itemsize
    }
