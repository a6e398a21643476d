"""`diff`: how two checkpoints differ, or the copies within one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from reshard.api.arguments import checked
from reshard.api.comparing import (
    Mismatch,
    Side,
    compare_tensors,
    mismatch_lines,
    pair_tensors,
    pairs_nbytes,
)
from reshard.api.drifting import Drift, Drifts, find_drift, first_difference
from reshard.api.pairing import open_pair
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.api.states import select_states
from reshard.api.training_facts import FactChange, compare_facts
from reshard.engine.progress import Meter, Progress
from reshard.errors import MAX_SHOWN
from reshard.plan.names import families
from reshard.plan.shown import Plain, Shown, plain
from reshard.plan.text import WIDTH, show_count, show_nbytes, table, wrap


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Plain, Shown, json_keys={"left": "a", "right": "b", "drifts": None}):
    """How two checkpoints differ, or the copies within one.

    Args:  left, right: what was compared; right is None for one checkpoint alone.
           tensors, nbytes: (parameter, state) pairs that both sides have, and their bytes.
           mismatches: of two checkpoints.  facts: values besides tensors that differ.
           drifts: of one checkpoint alone.
    """

    left: str
    right: str | None
    tensors: int
    nbytes: int
    mismatches: tuple[Mismatch, ...] = ()
    facts: tuple[FactChange, ...] = ()
    drifts: Drifts | None = None

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        copied = None if self.drifts is None else self.drifts.copied
        drifts = [] if self.drifts is None else plain(self.drifts.found)
        return {**Plain.to_json(self), "copied": copied, "drift": drifts}

    @property
    def same(self) -> bool:
        """No tensor differs; of one checkpoint: no copies differ that no layout averages."""
        return not self.mismatches and not (self.drifts and self.drifts.undeclared)

    def to_text(self) -> str:
        """For people, 80 columns wide."""

        return diff_text(self)


@checked
def diff(
    a: PathLike,
    b: PathLike | None = None,
    *,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float | None] | None = None,
    model: str | None = None,
    names: str | None = None,
    states: str | Iterable[str] = "all",
    on_progress: Callable[[Progress], None] | None = None,
) -> Diff:
    """How two checkpoints of any formats differ; or, of one alone, how its copies do.

    Args:  a: folder of a run, or of one of its steps; layout, layout_name: as for `open`, of `a`.
           b: another one; None to compare the copies within `a`.
           settings, model, names: as for `open`, of both sides. Two checkpoints of one model that
           name their tensors otherwise are compared in the names of `a`.
           states: `all`, `weights`, or kinds of state, of both sides.
           on_progress: is called now and then.
    Raises: ReshardError when something cannot be read; what differs is in the result.
    """
    request = Request.of(locals())
    if b is None:
        return _copies(open_source(a, request), request)
    return _two(*open_pair(a, b, request), request)


def _copies(source: OpenedSource, request: Request) -> Diff:
    arrangement = select_states(source, request.states).arrangement
    nbytes = sum(prod(whole.shape) * whole.dtype.itemsize for whole in arrangement.wholes)
    with source.files() as files:
        drifts = find_drift(arrangement, files, Meter(request.on_progress, nbytes))
        files.check_unchanged()
    return Diff(str(source.path), None, len(arrangement.wholes), nbytes, drifts=drifts)


def _two(left: OpenedSource, right: OpenedSource, request: Request) -> Diff:
    pairs = pair_tensors(left, right, request.states)
    sizes = pairs_nbytes(pairs)
    meter = Meter(request.on_progress, sum(sizes))
    sides = Side.of(left, "first"), Side.of(right, "first")
    mismatches = []
    with sides[0].files, sides[1].files:
        for (one, other), nbytes in zip(pairs, sizes, strict=True):
            mismatch = compare_tensors(one, sides[0], other, sides[1], widened=True)
            if mismatch is not None:
                mismatches.append(mismatch)
            meter.add(nbytes)
        for side in sides:
            side.files.check_unchanged()
    both = sum(one is not None and other is not None for one, other in pairs)
    facts = compare_facts(left.catalog, right.catalog)
    return Diff(str(left.path), str(right.path), both, sum(sizes), tuple(mismatches), facts)


def diff_text(result: Diff) -> str:
    """The answer of `reshard diff`, 80 columns wide."""
    if result.drifts is not None:
        return "\n".join(_copies_text(result, result.drifts))
    what = f"{show_count(result.tensors, 'tensor')}, {show_nbytes(result.nbytes)}"
    if result.same:
        lines = [f"the same bit for bit: {what}"]
    else:
        different = show_count(len(result.mismatches), "difference")
        lines = [f"{different}; {what} in both"]
    lines += [f"  A  {result.left}", f"  B  {result.right}"]
    lines += mismatch_lines(result.mismatches)
    if result.facts:
        lines += ["", f"different settings ({len(result.facts):,})"]
        for item in result.facts[:MAX_SHOWN]:
            where = {"not kept": "only in A", "added": "only in B"}.get(item.fate, "different")
            lines += [f"  {line}" for line in wrap(f"{where}: {item}", WIDTH - 2, indent="  ")]
        if len(result.facts) > MAX_SHOWN:
            lines.append(f"  and {len(result.facts) - MAX_SHOWN:,} more")
    return "\n".join(lines)


def _copies_text(result: Diff, drifts: Drifts) -> list[str]:
    copied = f"{show_count(drifts.copied, 'tensor')} of {result.tensors:,}"
    bad, declared = drifts.undeclared, [item for item in drifts.found if item.is_averaged]
    if not bad:
        lines = [f"copies agree: {result.left}"]
    else:
        lines = [f"copies differ: {show_count(len(bad), 'tensor')} of {result.left}"]
    lines.append(f"  {copied} are stored more than once")
    if bad:
        lines += ["", *_table(bad)]
        lines += ["", *_first(bad[0])]
    if declared:
        lines += ["", "averaged, as the layout states", *_table(declared)]
    return lines


def _first(item: Drift) -> list[str]:
    return [f"  {line}" for line in wrap(first_difference(item), WIDTH - 2, indent="  ")]


def _table(drifts: Sequence[Drift]) -> list[str]:
    named: dict[str, list[tuple[str, ...]]] = {}
    states: dict[str, dict[str, Drift]] = {}
    for item in drifts:
        states.setdefault(item.state, {})[item.name] = item
    for state, members in states.items():
        for pattern, names in families(members):
            items = [members[name] for name in names]
            named.setdefault(pattern, []).append(_row(state, items))
    visible = dict(list(named.items())[:MAX_SHOWN])
    head = ("", "copies", "differ", "of", "max diff", "max ulp")
    rows = [row for rows_of in visible.values() for row in rows_of]
    first, *rest = table([head, *rows], right="lrrrrr")
    lines = [first]
    for pattern, rows_of in visible.items():
        lines += [f"  {pattern}", *rest[: len(rows_of)]]
        rest = rest[len(rows_of) :]
    if len(named) > len(visible):
        lines.append(f"  and {len(named) - len(visible):,} more")
    return lines


def _row(state: str, items: Sequence[Drift]) -> tuple[str, ...]:
    largest = [item.max_abs for item in items if item.max_abs is not None]
    steps = [item.max_ulp for item in items if item.max_ulp is not None]
    return (
        f"      {state}",
        f"{max(item.copies for item in items):,}",
        f"{sum(item.numel_different for item in items):,}",
        f"{sum(item.numel for item in items):,}",
        f"{max(largest):.3g}" if largest else "-",
        f"{max(steps):,}" if steps else "-",
    )
