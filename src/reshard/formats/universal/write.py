"""Prepares a universal checkpoint: which files, which bytes, and the manifest at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from reshard.formats.sharded_set import (
    MAX_FILE_NBYTES,
    StateSet,
    natural,
    nbytes,
    share_out,
    stem_of,
)
from reshard.formats.universal import FRAMEWORK, LAYOUT, MANIFEST
from reshard.formats.universal.manifest import (
    FileEntry,
    Manifest,
    TensorEntry,
    json_bytes,
    manifest_bytes,
)
from reshard.formats.universal.own_layout import own_layout
from reshard.formats.universal.provenance import provenance, with_copies
from reshard.models.config import has_hf_names, model_config
from reshard.models.config_json import CONFIG
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.output import FileBytes, Output, PlacedSpec, Written
from reshard.plan.plan import ArraySpec
from reshard.plan.rename import atom_sizes
from reshard.plan.target import Target
from reshard.run.states import EXTRA, PARAM, WEIGHTS
from reshard.storage.index import SUFFIX, write_index
from reshard.storage.program import program
from reshard.store.digest import digest_bytes
from reshard.store.side_files import read_side_files


def prepare(
    arrangement: Arrangement,
    target: Target,
    *,
    states: Collection[str] | None = None,
    max_file_nbytes: int = MAX_FILE_NBYTES,
) -> Output:
    """A whole universal checkpoint.

    Args:  states: state kinds that are written, all when None; tensors that belong to no parameter
           (`extra`) always are.
           max_file_nbytes: tensor bytes of one file; a larger tensor gets a file of its own.
    Raises: ReshardError[unknown-option | tensor-name].
    """
    target.reject_unknown(())
    selected, dropped = _choose(arrangement, states)
    sets = share_out(selected, max_file_nbytes)
    places = {
        (item.name, item.state): (file.path, file.offsets[item.name])
        for group in sets
        for file in group.files
        for item in file.tensors
    }
    entries = tuple(_entry(item, *places[item.name, item.state]) for item in selected)
    layout_name, layout, warnings = own_layout(arrangement, selected, entries)
    weights_from, small = _small_files(arrangement, selected, sets, places)
    small[LAYOUT] = layout.encode("utf-8")
    if has_hf_names(arrangement) and (arrangement.layout.model is not None or CONFIG in small):
        config = model_config(
            arrangement, [item for item in selected if item.state in weights_from]
        )
        warnings = (*warnings, *config.warnings)
        if config.data is not None:
            small[CONFIG] = config.data
    heads = [FileBytes(file.path, 0, file.head) for group in sets for file in group.files]
    files = {file.path: file.nbytes for group in sets for file in group.files}
    file_entries = [FileEntry(path, len(data), digest_bytes(data)) for path, data in small.items()]
    file_entries += [
        FileEntry(head.file, files[head.file], digest_bytes(head.data), len(head.data))
        for head in heads
    ]
    catalog = arrangement.catalog
    draft = Manifest(
        written_by=program(),
        layout_name=layout_name,
        weights_from=weights_from,
        tensors=entries,
        files=tuple(sorted(file_entries, key=lambda item: natural(item.path))),
        aliases=catalog.aliases or {},
        buffers=catalog.buffers,
        frozen=catalog.frozen,
        config=catalog.config,
        sizes=_sizes(arrangement),
        training=catalog.training,
        provenance=provenance(
            arrangement, list(dict.fromkeys(item[1] for item in dropped)), program()
        ),
    )
    manifest_bytes(replace(draft, tensors=()))  # what cannot be written shows before tensors are

    def finish(results: Sequence[Written]) -> tuple[FileBytes, ...]:
        by_key = {(w.placed.array.spec.label, w.placed.array.spec.state): w for w in results}
        manifest = replace(
            draft,
            tensors=tuple(_digested(item, by_key[item.name, item.state]) for item in entries),
            provenance=with_copies(draft.provenance, arrangement, selected, results),
        )
        return (FileBytes(MANIFEST, 0, manifest_bytes(manifest)),)

    return Output(
        placed=tuple(
            PlacedSpec(_spec(item), file.path, file.offsets[item.name])
            for group in sets
            for file in group.files
            for item in file.tensors
        ),
        files=files,
        head=(*heads, *(FileBytes(path, 0, data) for path, data in small.items())),
        finish=finish,
        warnings=warnings,
        dropped=dropped,
    )


def _choose(
    arrangement: Arrangement, states: Collection[str] | None
) -> tuple[tuple[Whole, ...], tuple[tuple[str, str, str], ...]]:
    """The tensors that are written, and those that are not, with the reason."""
    wholes = arrangement.wholes
    if states is None:
        return wholes, ()
    kinds = {*states, EXTRA}
    selected = tuple(item for item in wholes if item.state in kinds)
    dropped = tuple(
        (item.name, item.state, "not among the states asked for")
        for item in wholes
        if item.state not in kinds
    )
    return selected, dropped


def _entry(item: Whole, file: str, byte_offset: int) -> TensorEntry:
    axes = tuple("_" if item.state == EXTRA else axis for axis in item.axes)
    return TensorEntry(
        item.name,
        item.state,
        item.dtype,
        item.shape,
        axes,
        file,
        byte_offset,
        nbytes(item),
        "",
    )


def _spec(item: Whole) -> ArraySpec:
    numel = nbytes(item) // item.dtype.itemsize
    return ArraySpec(item.name, item.state, item.dtype, numel, item.segments, item.shape)


def _small_files(
    arrangement: Arrangement,
    wholes: Sequence[Whole],
    sets: Sequence[StateSet],
    places: Mapping[tuple[str, str], tuple[str, int]],
) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Where the weights are, and every file without tensors but the layout."""
    small: dict[str, bytes] = {}
    for group in sets:
        if group.state != PARAM:
            small[group.index_path] = group.index()
    weights: dict[str, Whole] = {}
    for state in WEIGHTS:
        for item in wholes:
            if item.state == state:
                weights.setdefault(item.name, item)
    used = {item.state for item in weights.values()}
    if weights:
        index = {name: places[name, item.state][0] for name, item in weights.items()}
        total = sum(nbytes(item) for item in weights.values())
        small[stem_of(PARAM) + SUFFIX] = write_index(index, {"total_size": total})
    catalog = arrangement.catalog
    small.update(read_side_files(catalog))
    if catalog.training.framework:
        small[FRAMEWORK] = json_bytes(catalog.training.framework)
    return tuple(state for state in WEIGHTS if state in used), small


def _digested(item: TensorEntry, written: Written) -> TensorEntry:
    assert written.digest is not None, "every array of a universal checkpoint is digested"
    return replace(item, digest=written.digest)


def _sizes(arrangement: Arrangement) -> dict[str, int]:
    """The sizes of the model's axes; a layout without a model has no axes of its own."""
    if arrangement.layout.model is None:
        return {}
    model = arrangement.layout.model
    return {axis: size for axis, size in atom_sizes(arrangement).items() if axis in model.axes}
