"""Reads what Megatron saves as a plain distributed checkpoint: `fsdp_dtensor` and `torch_dcp`.

Every tensor has a key of its own, with layers and experts numbered over the model; a gated first
layer is two keys, `..._w` and `..._v`.  Arguments and the rest are pickled objects beside them.
Source: megatron/training/checkpointing.py, megatron/core/distributed/fsdp/mcore_fsdp_adapter.py
(core 0.14 to 0.20).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reshard.errors import Diagnostic, source_error
from reshard.formats.megatron.catalog import Contents
from reshard.formats.megatron.described import arguments_beside
from reshard.formats.megatron.groups import Groups
from reshard.models.run_arguments import Arguments, arguments_in
from reshard.plan.catalog import Catalog, LocalTensor
from reshard.run.states import EXTRA, PARAM
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import read_metadata

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout megatron_fsdp {
    "**" = [...] optional
}
"""

_MODEL = "model."
_STATE = "optimizer.state."
_META = "optimizer.param_to_group_meta."
_WRAPPER = "module."


def read_fsdp(folder: Path) -> Catalog:
    """The catalog of a folder with `.metadata` and without `metadata.json`.

    Raises: what `read_metadata` and `ChunkReader` raise. What is wrong with the optimizer alone is
            kept in the catalog.
    """
    metadata = read_metadata(folder)
    chunks = ChunkReader(folder)
    chunks.know(".metadata")
    raw = {item.name: chunks.object_of(item) for item in metadata.objects}
    weights: list[LocalTensor] = []
    states: list[LocalTensor] = []
    withheld: tuple[Diagnostic, ...] = ()
    for stored in metadata.tensors:
        name, state = _role(stored.name)
        if state not in (PARAM, EXTRA) and name.isdecimal():
            withheld = withheld or _numbered(folder, stored.name)
            continue
        fragments = chunks.fragments(stored)
        tensor = LocalTensor(name, state, (), stored.shape, stored.dtype, fragments)
        (weights if state in (PARAM, EXTRA) else states).append(tensor)
    chunks.refuse_overlaps()
    args = arguments_in(raw.get("args"), str(folder / ".metadata"))
    args = args or arguments_beside(folder) or Arguments({}, "")
    root: dict[object, object] = {
        key: value for key, value in raw.items() if not key.startswith("optimizer.")
    }
    contents = Contents(folder, "fsdp", root, args, weights)
    contents.vocabulary, contents.withheld = None, withheld
    if not withheld:
        contents.states, contents.groups = states, _groups(raw)
    return contents.catalog(
        LAYOUT,
        tuple(chunks.files.values()),
        objects={
            key: value
            for key, value in raw.items()
            if key.startswith("optimizer.") and not key.startswith(_META)
        },
    )


def _role(key: str) -> tuple[str, str]:
    """A tensor's parameter and state; wrappers of the module are no part of its name."""
    if key.startswith(_STATE):
        name, _, state = key.removeprefix(_STATE).rpartition(".")
        return _unwrapped(name), state
    if key.startswith(_MODEL):
        name = _unwrapped(key.removeprefix(_MODEL))
        return name, EXTRA if "_extra_state" in name else PARAM
    return key, EXTRA


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPER):
        name = name.removeprefix(_WRAPPER)
    return name


def _groups(raw: Mapping[str, object]) -> Groups:
    """Hyper-parameters are stored for each parameter; those with the same ones are a group."""
    values: dict[str, dict[str, object]] = {}
    for key, value in raw.items():
        if key.startswith(_META):
            name, _, setting = key.removeprefix(_META).rpartition(".")
            values.setdefault(_unwrapped(name), {})[setting] = value
    out = Groups()
    for name, settings in values.items():
        out.add(settings, [name])
    return out


def _numbered(folder: Path, key: str) -> tuple[Diagnostic, ...]:
    return source_error(
        "ambiguous-optimizer-ids",
        f"`{key}` in {folder} belongs to a parameter that has a number and no name",
        notes=["`torch_dcp` saves the optimizer's own `state_dict()`, which counts"],
        helps=["keep the weights with `--states weights`"],
    ).diagnostics
