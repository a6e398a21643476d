"""Reads DeepSpeed's universal form, as `ds_to_universal.py` and reshard write it.

Source: DeepSpeed 0.19.8 checkpoint/ds_to_universal.py `merge_tp_slices`, `_merge_zero3_slice_files`
and `_save_optimizer_state`; checkpoint/universal_checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from reshard.errors import Diagnostic, source_error, warning
from reshard.formats.deepspeed.experts import expert_of
from reshard.formats.deepspeed.files import (
    MODEL,
    MODEL_ZERO3,
    OPTIMIZER_STATE,
    ZERO,
    Files,
    find_universal,
    no_model_file,
)
from reshard.formats.deepspeed.model_file import ModelFile, Shapes, read_model_file
from reshard.formats.deepspeed.node import Node, scalar_of, unexpected
from reshard.formats.deepspeed.training import group_of, run_config, run_of
from reshard.formats.deepspeed.weights import find_aliases
from reshard.language import load_layout
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.run.states import MASTER, PARAM, STEP
from reshard.storage.kept import Keeper, local_tensor
from reshard.storage.torch_file import TensorRef
from reshard.store.source import LocalSource

NAME = "deepspeed-universal"
LAYOUT = 'layout deepspeed {\n    mesh tp\n    "**" = [...]\n}\n'
States = Mapping[str, Mapping[str, Node]]
"""By parameter, what its files hold, by state (`fp32`, `exp_avg`, ..., `step`)."""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a universal checkpoint of DeepSpeed; no large tensor is read.

    Args:  path: its folder, or one that holds several and `latest_universal`.
           step: the name of one of several.  strict_layout: has no meaning here.
    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    del strict_layout
    root = find_universal(path, step)
    files = Files(root)
    stored = _files(root, files)
    optimizer = files.root_of(OPTIMIZER_STATE) if LocalSource(root).has(OPTIMIZER_STATE) else None
    models = _models(root, files)
    first = models[0]
    groups = None if optimizer is None else optimizer.get("param_groups")
    nodes = [] if groups is None else list(groups.items())
    shapes = first.param_shapes or ()
    names = shapes if len(shapes) == len(nodes) else [{}] * len(nodes)
    keeper = Keeper()
    items = enumerate(zip(nodes, names, strict=True))
    made = [group_of(index, node, group_names, keeper) for index, (node, group_names) in items]
    run = run_of(models, optimizer, made, keeper)
    states = _states(stored, models)
    known = {item.name: item.shape for item in states if item.shape}
    aliases = {a: name for a, name in find_aliases(models).items() if a not in stored}
    weights, unread = _weights(stored, models, known, aliases)
    others = {item.name for item in weights} - set(stored)
    buffers = tuple(name for name in first.buffer_names if name in others)
    config, padding = run_config(first.root)
    version = first.root.get("ds_version")
    return Catalog(
        NAME,
        "" if version is None else version.text(),
        str(root.resolve()),
        {"tp": len(models) if others else 1},
        (*states, *weights, *keeper.tensors),
        load_layout(LAYOUT, "deepspeed layout"),
        run,
        config=config,
        aliases=aliases,
        buffers=buffers,
        frozen=tuple(sorted(others - set(buffers))),
        files=files.seen,
        oddities=(*_cut_weights(first, unread), *padding),
    )


def _files(root: Path, files: Files) -> States:
    """The folder of every parameter."""
    out: dict[str, dict[str, Node]] = {}
    source = LocalSource(root)
    for folder in source.folders(ZERO):
        name = folder.removeprefix(f"{ZERO}/")
        out[name] = {
            file.removeprefix(f"{folder}/").removesuffix(".pt"): files.root_of(file)
            for file in source.files(folder)
            if file.endswith(".pt")
        }
        if "fp32" not in out[name]:
            listed = ", ".join(f"`{state}.pt`" for state in out[name])
            raise source_error(
                "missing-file",
                f"{root / folder} has no `fp32.pt`",
                notes=[f"it has {listed or 'no files'}"],
                helps=["copy the folder again, or convert the checkpoint that it was made from"],
            )
    return out


def _models(root: Path, files: Files) -> list[ModelFile]:
    """One for each model-parallel rank; of stage 3, those of the first data-parallel rank.

    A folder for all stages has both.
    """
    listed = LocalSource(root).files()
    names = [name for name in listed if MODEL.match(name)] or [
        name for name in listed if (MODEL_ZERO3.match(name) or {}).get("dp") == 0
    ]
    if not names:
        raise no_model_file(root)
    return [read_model_file(files.root_of(name)) for name in names]


def _states(stored: States, models: Sequence[ModelFile]) -> list[LocalTensor]:
    """Every state of every parameter."""
    out: list[LocalTensor] = []
    shapes = {name: shape for model in models for name, shape in model.trained_shapes()}
    for name, files in stored.items():
        if expert_of(name) is not None:
            raise source_error(
                "unsupported-experts",
                f"`{name}` holds the experts of several ranks, joined",
                notes=[f"{files['fp32'].file} does not state of how many"],
                helps=["convert the checkpoint that the folder was made from"],
            )
        for state, node in files.items():
            kind = MASTER if state == "fp32" else state
            out.append(_state(name, kind, node, shapes.get(name)))
    return out


def _state(name: str, state: str, node: Node, shape: tuple[int, ...] | None) -> LocalTensor:
    """One file: a dict with the tensor, the tensor alone, or a number.

    Args:  shape: of the parameter, where a model file tells it.
    """
    tensor = node.at("param") if node.is_dict else node
    value, number = tensor.value, scalar_of(tensor)
    if number is not None and (state == STEP or not isinstance(value, TensorRef)):
        return number.local(name, state, ())
    if not isinstance(value, TensorRef):
        raise unexpected(f"{node.file} holds neither a tensor nor a number")
    if node.is_dict or shape is None or shape == value.shape:
        return local_tensor(value, name, state, (), node.file)
    # ZeRO-3 merges partitions without giving them their shape back.
    if not value.is_contiguous or value.numel != prod(shape):
        raise source_error(
            "shape-mismatch",
            f"{node.file} has {value.numel} elements, and `{name}` has {prod(shape)}",
            notes=[f"`param_shapes` says {list(shape)}"],
            helps=["convert the checkpoint again that the folder was made from"],
        )
    run = (Fragment(0, value.numel, node.file, value.byte_offset),) * bool(value.numel)
    return LocalTensor(name, state, (), shape, value.dtype, run)


def _weights(
    stored: States, models: Sequence[ModelFile], shapes: Shapes, aliases: Mapping[str, str]
) -> tuple[list[LocalTensor], list[str]]:
    """Weights of the model files, and the names of those that are there only in pieces.

    Of what `zero` holds, a model file of several ranks has a cut, and one of a padded vocabulary
    more; the master weights say the same.
    """
    out: list[LocalTensor] = []
    unread: dict[str, None] = {}
    for rank, model in enumerate(models):
        coord = () if len(models) == 1 else (("tp", rank),)
        for name, ref in model.module.items():
            is_whole = len(models) == 1 and ref.shape == shapes.get(name, ref.shape)
            if name in aliases:
                continue
            if name not in stored or is_whole:
                out.append(local_tensor(ref, name, PARAM, coord, model.file))
            elif ref.numel:  # ZeRO-3 leaves an empty tensor in the place of each weight
                unread[name] = None
    return out, list(unread)


def _cut_weights(first: ModelFile, unread: Sequence[str]) -> tuple[Diagnostic, ...]:
    if not unread:
        return ()
    return (
        warning(
            "deepspeed-cut-weights",
            f"weights in the type of the computation are not read of {len(unread)} parameters",
            f"{first.file} has them cut over ranks or padded, e.g. `{unread[0]}`",
            "their master weights are whole",
            helps=("round them from the master weights with `--dtype`",),
        ),
    )
