"""Where a universal checkpoint came from: one record a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reshard.formats.universal import NAME
from reshard.formats.universal.read_manifest import read_manifest
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import Written
from reshard.plan.prove import replicas


def provenance(
    arrangement: Arrangement, left_out: Sequence[str], converted_by: str
) -> tuple[Mapping[str, object], ...]:
    """The records of the source, where it is universal itself, and one of this conversion.

    Args:  left_out: state kinds that were not asked for.
    """
    catalog = arrangement.catalog
    before: tuple[Mapping[str, object], ...] = ()
    if catalog.format == NAME:
        before = read_manifest(Path(catalog.root)).provenance
    record: dict[str, object] = {
        "format": catalog.format,
        "version": catalog.version,
        "converted_by": converted_by,
        "mesh": catalog.mesh,
        "layout": catalog.layout.name,
        "layout_text": catalog.layout.text,
        "left_out": left_out,
        "oddities": [item.to_json() for item in catalog.oddities],
        "copies": {},
        "files": [[item.path, item.nbytes, item.mtime_ns] for item in catalog.files],
    }
    casts = _casts(arrangement)
    if catalog.names_of:
        record["names"] = catalog.names_of
    if catalog.left:
        record["left"] = [item.to_json() for item in catalog.left]
    if casts:
        record["casts"] = casts
    return (*before, record)


def with_copies(
    records: Sequence[Mapping[str, object]],
    arrangement: Arrangement,
    wholes: Sequence[Whole],
    results: Sequence[Written],
) -> tuple[Mapping[str, object], ...]:
    """The records, with what became of the copies of each tensor in the last one."""
    return (*records[:-1], {**records[-1], "copies": _copies(arrangement, wholes, results)})


def _copies(
    arrangement: Arrangement, wholes: Sequence[Whole], results: Sequence[Written]
) -> dict[str, dict[str, object]]:
    """Tensors that the source holds more than once: how often, and what became of the copies.

    `equal`: all were read and are the same bit for bit.  `mean`: averaged.  `first`: whatever the
    others are.
    """
    modes = {
        (item.placed.array.spec.label, item.placed.array.spec.state): {
            box.mode for box in item.placed.array.boxes
        }
        for item in results
    }
    out: dict[str, dict[str, object]] = {}
    for whole in wholes:
        stored = [arrangement.parts.get((key, whole.state), ()) for key, _ in whole.segments]
        count = max((len(replicas(parts)) for parts in stored), default=0)
        if count < 2:
            continue
        modes_of = modes.get((whole.name, whole.state), set())
        agreement = "mean" if "mean" in modes_of else "equal" if "agree" in modes_of else "first"
        out.setdefault(whole.name, {})[whole.state] = [count, agreement]
    return out


def _casts(arrangement: Arrangement) -> dict[str, str]:
    """By state, as what its tensors were stored and as what they are written, where that differs.

    Weights that were rounded from the master weights are such a state too.
    """
    out: dict[str, dict[str, None]] = {}
    for whole in arrangement.wholes:
        for key, _ in whole.segments[:1]:
            for part in arrangement.parts.get((key, whole.state), ())[:1]:
                if part.dtype != whole.dtype:
                    out.setdefault(whole.state, {})[f"{part.dtype} to {whole.dtype}"] = None
    return {state: ", ".join(casts) for state, casts in out.items()}
