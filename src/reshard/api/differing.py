"""`diff`: how two checkpoints differ, or the copies within one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from reshard.api.arguments import checked
from reshard.api.comparing import Mismatch, Side, compare_tensors, pair_tensors, pairs_nbytes
from reshard.api.drifting import Drifts, find_drift
from reshard.api.pairing import open_pair
from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.api.states import select_states
from reshard.api.training_facts import FactChange, compare_facts
from reshard.engine.progress import Meter, Progress
from reshard.plan.shown import Shown


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Shown):
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

    @property
    def same(self) -> bool:
        """No tensor differs; of one checkpoint: no copies differ that no layout averages."""
        return not self.mismatches and not (self.drifts and self.drifts.undeclared)

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        drifts = self.drifts
        return {
            "a": self.left,
            "b": self.right,
            "tensors": self.tensors,
            "nbytes": self.nbytes,
            "mismatches": [item.to_json() for item in self.mismatches],
            "facts": [item.to_json() for item in self.facts],
            "copied": None if drifts is None else drifts.copied,
            "drift": [] if drifts is None else [item.to_json() for item in drifts.found],
        }

    def to_text(self) -> str:
        """For people, 80 columns wide."""
        from reshard.api.diff_text import diff_text

        return diff_text(self)


@checked
def diff(
    a: PathLike,
    b: PathLike | None = None,
    *,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float] | None = None,
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
    from reshard.engine.source_files import SourceFiles

    arrangement = select_states(source, request.states).arrangement
    nbytes = sum(prod(whole.shape) * whole.dtype.itemsize for whole in arrangement.wholes)
    with SourceFiles(source.catalog.root, source.catalog.files) as files:
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
            found = compare_tensors(one, sides[0], other, sides[1], widened=True)
            if found is not None:
                mismatches.append(found)
            meter.add(nbytes)
        for side in sides:
            side.files.check_unchanged()
    both = sum(one is not None and other is not None for one, other in pairs)
    facts = compare_facts(left.catalog, right.catalog)
    return Diff(str(left.path), str(right.path), both, sum(sizes), tuple(mismatches), facts)
