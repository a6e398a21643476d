"""Reads a nanotron checkpoint into a catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.errors import Diagnostic, source_error
from reshard.formats.nanotron import (
    COPY,
    METADATA,
    MODEL_CONFIG,
    NAME,
    OPTIMIZER_CONFIG,
)
from reshard.formats.nanotron.detect import step_folder
from reshard.formats.nanotron.groups import merge
from reshard.formats.nanotron.optimizer import States, read_states
from reshard.formats.nanotron.weights import local_tensors, read_weights
from reshard.language import load_layout
from reshard.plan.agreement import agreed
from reshard.plan.catalog import Catalog, SourceFile
from reshard.run.run import Group, Run
from reshard.storage.bounded_json import load_bounded
from reshard.storage.kept import encode
from reshard.storage.torch_file import open_torch_file
from reshard.store.links import refuse_outside

LAYOUT = """\
# Every shard says itself which boxes of its tensor it holds: nothing is cut by rank. Along `copy`
# lie the states of parameters that several ranks hold whole.
layout nanotron {
    mesh copy
    "**" = [...] optional
}
"""
_SCHEDULER = re.compile(r"lr_scheduler/lr_scheduler_pp-(?P<pp>[0-9]+)-of-")
_MAX_NBYTES = 64 << 20


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a checkpoint.

    Args:  path: the folder of a step, or of a run.  step: which one.
           strict_layout: there is nothing to relax.
    Raises: ReshardError[unknown-step | ambiguous-step | bad-metadata | bad-shard |
            bad-safetensors | missing-rank-file | partition-mismatch | outside-link], and what
            `open_torch_file` raises.
    """
    root = step_folder(path, step)
    files: list[SourceFile] = []
    metadata = _json(root, METADATA, files)
    config = _json(root, MODEL_CONFIG, files) if (root / MODEL_CONFIG).exists() else None
    weights, weight_files = read_weights(root)
    states = read_states(root, weights)
    others = _others(root, files)
    return Catalog(
        format=NAME,
        version=str(metadata.get("version", "")),
        root=str(root.absolute()),
        mesh={COPY: states.copies} if states.copies > 1 else {},
        tensors=(*local_tensors(weights), *states.tensors),
        layout=load_layout(LAYOUT, "nanotron layout"),
        training=_training(metadata, config, states, others),
        config=config,
        files=(*files, *weight_files, *states.files),
        oddities=_oddities(root, weights, states),
        left=tuple(states.left),
    )


def _training(
    metadata: Mapping[str, object],
    config: Mapping[str, object] | None,
    states: States,
    others: Mapping[str, object],
) -> Run:
    metas = metadata.get("metas")
    iteration = metas.get("last_train_step") if isinstance(metas, dict) else None
    merged = merge(states.stages, _schedulers(others))
    framework = {
        "name": NAME,
        "metadata": metadata,
        "model_config": config,
        "objects": others,
        "groups": merged.kind,
    }
    return Run(
        iteration=iteration if isinstance(iteration, int) else None,
        param_groups=tuple(map(Group.of, merged.groups)),
        state={} if merged.scheduler is None else {"lr_scheduler": merged.scheduler},
        framework=framework,
    )


def _schedulers(others: Mapping[str, object]) -> dict[int, Mapping[str, object]]:
    """The scheduler of each pipeline stage, which all of its ranks have.

    Raises: ReshardError[mixed-runs].
    """
    found: dict[int, list[tuple[str, object]]] = {}
    for name, value in others.items():
        match = _SCHEDULER.match(name)
        if match is not None:
            found.setdefault(int(match["pp"]), []).append((name, value))
    out: dict[int, Mapping[str, object]] = {}
    for stage, copies in found.items():
        value = agreed(copies, "learning rate schedulers of a stage")
        if isinstance(value, dict):
            out[stage] = value
    return out


def _others(root: Path, files: list[SourceFile]) -> dict[str, object]:
    """The schedulers and random states of all ranks, by file."""
    out: dict[str, object] = {}
    for path in _torch_files(root):
        refuse_outside(root, path)
        name = path.relative_to(root).as_posix()
        files.append(_known(root, name))
        out[name] = encode(open_torch_file(path).root)
    return out


def _torch_files(root: Path) -> Iterator[Path]:
    for folder in ("lr_scheduler", "random"):
        if (root / folder).is_dir():
            yield from sorted((root / folder).glob("*.pt"))


def _json(root: Path, name: str, files: list[SourceFile]) -> Mapping[str, object]:
    path = root / name
    refuse_outside(root, path)
    try:
        found = _known(root, name)
        if found.nbytes > _MAX_NBYTES:
            raise ValueError(f"it has {found.nbytes} bytes")
        value = load_bounded(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise source_error(
            "bad-metadata",
            f"{path} cannot be understood",
            notes=[str(error)],
            helps=["the file is damaged; copy it again, or use an earlier checkpoint"],
        ) from None
    files.append(found)
    return value


def _known(root: Path, name: str) -> SourceFile:
    refuse_outside(root, root / name)
    found = (root / name).stat()
    return SourceFile(name, found.st_size, found.st_mtime_ns)


def _oddities(root: Path, weights: Mapping[str, object], states: States) -> tuple[Diagnostic, ...]:
    if states.sizes is not None or not (root / OPTIMIZER_CONFIG).exists():
        return ()
    return (
        Diagnostic(
            "no-states",
            f"{root} has the configuration of an optimizer, and none of its states",
            level="warning",
            helps=("copy the files `optimizer/optimizer_*.pt` of all ranks too",),
        ),
    )
