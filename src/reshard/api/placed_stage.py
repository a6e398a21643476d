"""A target that its reader does not read, taken as its plan placed it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from reshard.algebra.box import Box
from reshard.api.converting import Prepared
from reshard.api.source import OpenedSource
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.plan.arrangement import Arrangement, AtomState, StoredPart, Whole
from reshard.plan.catalog import Fragment
from reshard.plan.output import PlacedSpec
from reshard.plan.prove import prove_sources
from reshard.storage.source import LocalSource


def placed_source(prepared: Prepared, path: Path) -> OpenedSource:
    """A folder as a source: the pieces of its arrays, where its plan placed them.

    Every array must be a tensor of a file, of its type and shape: each torch file is opened, and
    tells where its tensors are.  What the tensors are called there is not looked at.

    Raises: ReshardError[not-stored] for an array that no file tells of.
    """
    _check_placed(prepared, path)
    source = prepared.source
    whole = source.arrangement
    parts: dict[AtomState, list[StoredPart]] = {}
    for number, item in enumerate(prepared.output.placed):
        for key, piece in item.spec.segments:
            fragment = Fragment(0, item.spec.numel, item.file, item.byte_offset)
            where = (("array", number),)
            parts.setdefault((key, item.spec.state), []).append(
                StoredPart(piece, item.spec.dtype, (fragment,), where, (), "", 0)
            )
    wholes: list[Whole] = []
    found: dict[AtomState, tuple[StoredPart, ...]] = {}
    for tensor in whole.wholes:
        held = _held(whole, tensor, parts)
        if held is not None:
            wholes.append(tensor)
            for atom_state, items in held.items():
                found[atom_state] = (*found.get(atom_state, ()), *items)
    catalog = replace(
        source.catalog,
        format=prepared.target.format.partition("-")[0],  # the framework of `deepspeed-universal`
        root=str(path),
        tensors=(),
        side_files={},
        files=tuple(map(LocalSource(path).stat, dict(prepared.report.files))),
    )
    arrangement = replace(whole, catalog=catalog, parts=found, wholes=tuple(wholes), averaged={})
    return OpenedSource(
        path, catalog, arrangement, prove_sources(arrangement), source.own, source.family
    )


def _held(
    arrangement: Arrangement, tensor: Whole, parts: Mapping[AtomState, list[StoredPart]]
) -> dict[AtomState, list[StoredPart]] | None:
    """The parts of a whole tensor, named after it; None if they are not all of it."""
    out: dict[AtomState, list[StoredPart]] = {}
    for key, piece in tensor.segments:
        if not piece.box.volume:
            out.setdefault((key, tensor.state), [])
            continue
        copies: dict[int, list[StoredPart]] = {}
        seen: Counter[Box] = Counter()
        for part in parts.get((key, tensor.state), ()):
            box = part.piece.box.intersect(piece.box)
            if box is None:
                continue
            copy = seen[box]
            seen[box] += 1
            here = replace(
                part,
                piece=part.piece.restrict(box),
                replica=(("copy", copy),),
                whole=tensor.name,
                rule=tensor.rule,
            )
            copies.setdefault(copy, []).append(here)
        whole = [
            items
            for items in copies.values()
            if sum(part.piece.box.volume for part in items) == piece.box.volume
        ]
        if not whole:
            return None
        out[key, tensor.state] = [part for items in whole for part in items]
    return out


def _check_placed(prepared: Prepared, path: Path) -> None:
    from reshard.storage.torch_file import TensorRef, open_torch_file, walk

    known: dict[tuple[str, int], set[tuple[DType, tuple[int, ...]]]] = {}
    files = dict.fromkeys(item.file for item in prepared.output.placed)
    for name in files:

        def note(_: object, ref: TensorRef, name: str = name) -> None:
            known.setdefault((name, ref.byte_offset), set()).add((ref.dtype, ref.shape))

        walk(open_torch_file(path / name).root, note)
    for item in prepared.output.placed:
        spec = item.spec
        shape = (spec.numel,) if spec.shape is None else spec.shape
        if (spec.dtype, shape) not in known.get((item.file, item.byte_offset), ()):
            raise _untold(item)


def _untold(item: PlacedSpec) -> ReshardError:
    return source_error(
        "not-stored",
        f"no tensor of `{item.file}` is the array `{item.spec.label}`",
        notes=[f"it was placed at byte {item.byte_offset}"],
    )
