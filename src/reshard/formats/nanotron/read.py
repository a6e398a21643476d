"""Reads a nanotron checkpoint into a catalog, by the description of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from reshard.errors import Diagnostic, source_error
from reshard.formats.described.faults import not_a_shard
from reshard.formats.described.groups import SHARED
from reshard.formats.described.read import read_folder
from reshard.formats.described.shipped import description
from reshard.formats.described.walk import Walked
from reshard.formats.nanotron import METADATA, NAME, OPTIMIZER_CONFIG
from reshard.formats.nanotron.detect import step_folder
from reshard.language import load_layout
from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog
from reshard.run.states import EXTRA
from reshard.storage.kept import encode

LAYOUT = """\
# Every shard says itself which boxes of its tensor it holds: nothing is cut by rank. Along `copy`
# lie the states of parameters that several ranks hold whole.
layout nanotron {
    mesh copy
    "**" = [...] optional
}
"""
_KEPT = ("metadata", "model_config")
"""Facts of its JSON files, which go back into them."""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a checkpoint.

    Args:  path: the folder of a step, or of a run.  step: which one.
           strict_layout: there is nothing to relax.
    Raises: ReshardError[unknown-step | ambiguous-step | bad-metadata | bad-shard |
            bad-safetensors | missing-rank-file | share-mismatch | outside-link], and what
            `read_folder` raises.
    """
    root = step_folder(path, step)
    layout = description(NAME)
    _check_names(root, layout)
    catalog, walked = read_folder(layout, root, name=NAME)
    state = dict(catalog.training.state)
    metadata, config = (_object(root, state.pop(name, None)) for name in _KEPT)
    framework = {
        "name": NAME,
        "metadata": metadata,
        "model_config": config,
        "objects": _objects(walked),
        "groups": catalog.training.framework.get("groups", SHARED),
    }
    return replace(
        catalog,
        version=str((metadata or {}).get("version", "")),
        tensors=tuple(tensor for tensor in catalog.tensors if tensor.state != EXTRA),
        layout=load_layout(LAYOUT, "nanotron layout"),
        training=replace(catalog.training, state=state, framework=framework),
        config=config,
        oddities=tuple(_oddities(root, walked)),
    )


def _object(root: Path, value: object) -> Mapping[str, object] | None:
    if value is None or isinstance(value, dict):
        return value
    raise source_error(
        "bad-metadata",
        f"{root / METADATA} cannot be understood",
        notes=["it is no object"],
        helps=["the file is damaged; copy it again, or use an earlier checkpoint"],
    )


def _objects(walked: Walked) -> dict[str, object]:
    """The schedulers and random states of all ranks, by file."""
    out: dict[str, object] = {}
    for leaf in walked.of("run"):
        if leaf.entry.names == ("lr_scheduler",):
            out[leaf.file.path] = leaf.value
    for leaf in walked.of("keep"):
        held = out.setdefault(leaf.file.path, {})
        assert isinstance(held, dict)
        held[leaf.where[0].value] = leaf.value
    return {file: encode(out[file]) for file in sorted(out)}


def _check_names(root: Path, layout: Layout) -> None:
    """Refuse files of weights and of states whose names do not say whose they are."""
    names = [name.pattern for rule in layout.files for name in rule.names]
    for pattern in ("model/**/*.safetensors", "optimizer/optimizer_*.pt"):
        for path in sorted(root.glob(pattern)):
            if not any(name.match(path.relative_to(root).as_posix()) for name in names):
                raise not_a_shard(path, "its name does not say of which rank or parameter it is")


def _oddities(root: Path, walked: Walked) -> Iterator[Diagnostic]:
    if not walked.of("states") and (root / OPTIMIZER_CONFIG).exists():
        yield Diagnostic(
            "no-states",
            f"{root} has the configuration of an optimizer, and none of its states",
            level="warning",
            helps=("copy the files `optimizer/optimizer_*.pt` of all ranks too",),
        )
