"""What becomes of every tensor of a source: from how many runs, into how many pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from reshard.dtypes import DType
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.collector import uncollected
from reshard.plan.plan import Plan

Kind = Literal["written", "averaged", "folded", "dropped", "left out"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one state of one parameter.

    Args:  name, state, shape, dtype: of the whole tensor.
           kind: "written"; "averaged", the mean of copies; "folded", it is part of something else;
                 "dropped", the target has no place for it; "left out", it was not asked for.
           why: for a tensor that is dropped.  For one that is folded, as what it is written.
           runs: places in the source that are read for it.  src_files: in how many files.
           pieces: arrays of the target that hold some of it.  dst_files: in how many files.
    """

    name: str
    state: str
    shape: tuple[int, ...]
    dtype: DType
    kind: Kind
    why: str = ""
    runs: int = 0
    src_files: int = 0
    pieces: int = 0
    dst_files: int = 0

    @property
    def is_written(self) -> bool:
        """Whether the target holds it, by itself or as part of something else."""
        return self.kind not in ("dropped", "left out")

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        out: dict[str, object] = {
            "name": self.name,
            "state": self.state,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "fate": self.kind,
        }
        if self.why:
            out["why"] = self.why
        if self.pieces:
            out |= {
                "runs": self.runs,
                "source_files": self.src_files,
                "pieces": self.pieces,
                "target_files": self.dst_files,
            }
        return out


@dataclass(slots=True)
class _Use:
    """Where one state of one atom goes and comes from."""

    origins: set[tuple[str, int]]
    targets: set[tuple[str, int]]
    averaged: bool = False


@uncollected
def fates(
    arrangement: Arrangement,
    plan: Plan,
    *,
    dropped: Iterable[tuple[str, str, str]] = (),
    folded: Iterable[tuple[str, str, str]] = (),
    left_out: Sequence[Whole] = (),
) -> tuple[Fate, ...]:
    """The fate of every tensor, in the order of the source.

    Args:  dropped: (name, state, why) that the target reports.  folded: (name, state, as what).
           left_out: tensors that were not asked for; `arrangement` does not have them.
    """
    uses: dict[tuple[str, str], _Use] = {}
    for item in plan.placed:
        state = item.array.spec.state
        for box in item.array.boxes:
            use = uses.setdefault((box.atom, state), _Use(set(), set()))
            use.targets.add((item.file, item.byte_offset))
            use.averaged = use.averaged or box.mode == "mean"
            use.origins.update(box.places)
        for key, piece in item.array.spec.segments:
            if not piece.box.volume:
                use = uses.setdefault((key, state), _Use(set(), set()))
                use.targets.add((item.file, item.byte_offset))
    reasons: dict[tuple[str, str], tuple[Kind, str]] = {}
    reasons |= {(name, state): ("folded", how) for name, state, how in folded}
    reasons |= {(name, state): ("dropped", why) for name, state, why in dropped}
    counts: dict[tuple[object, ...], _Counts] = {}
    out = []
    for whole in arrangement.wholes:
        head = (whole.name, whole.state, whole.shape, whole.dtype)
        reason = reasons.get((whole.name, whole.state))
        if reason is not None:
            out.append(Fate(*head, *reason))
            continue
        keys = tuple(dict.fromkeys(key for key, _ in whole.segments))
        count = counts.get((whole.state, keys))
        if count is None:
            known = [uses[key, whole.state] for key in keys if (key, whole.state) in uses]
            count = counts[whole.state, keys] = _counts(known)
        kind, runs, src_files, pieces, dst_files = count
        out.append(Fate(*head, kind, "", runs, src_files, pieces, dst_files))
    out += [Fate(w.name, w.state, w.shape, w.dtype, "left out") for w in left_out]
    return tuple(out)


_Counts = tuple[Kind, int, int, int, int]
"""What a `Fate` says besides its head and the reason."""


def _counts(uses: Sequence[_Use]) -> _Counts:
    origins = set[tuple[str, int]]().union(*(use.origins for use in uses))
    targets = set[tuple[str, int]]().union(*(use.targets for use in uses))
    return (
        "averaged" if any(use.averaged for use in uses) else "written",
        len(origins),
        len({file for file, _ in origins}),
        len(targets),
        len({file for file, _ in targets}),
    )
