"""Reads DeepSpeed's universal form, as `ds_to_universal.py` and reshard write it.

Source: DeepSpeed 0.19.8 checkpoint/ds_to_universal.py `merge_tp_slices`, `_merge_zero3_slice_files`
and `_save_optimizer_state`; checkpoint/universal_checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.deepspeed.experts import native_index
from reshard.formats.deepspeed.keeper import Keeper
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import scalar_of
from reshard.formats.deepspeed.universal_form.folder import (
    UniversalFolder,
    find_folder,
    read_universal_folder,
)
from reshard.formats.deepspeed.universal_form.training import read_training
from reshard.formats.deepspeed.weights import PARAM, find_aliases, tensor_of
from reshard.language import load_layout
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef

NAME = "deepspeed-universal"
_LAYOUT = 'layout deepspeed {\n    mesh tp\n    "**" = [...]\n}\n'


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a universal checkpoint of DeepSpeed; no large tensor is read.

    Args:  path: its folder, or one that holds several and `latest_universal`.
           step: the name of one of several.  strict_layout: has no meaning here.
    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    del strict_layout
    root = find_folder(path, step)
    folder = read_universal_folder(root)
    keeper = Keeper()
    training = read_training(folder, keeper)
    states = list(_states(folder))
    weights, unread = _weights(folder, {item.name: item.shape for item in states if item.shape})
    aliases = {
        alias: name
        for alias, name in find_aliases(folder.models).items()
        if alias not in folder.states
    }
    version = folder.models[0].root.get("ds_version")
    others = {item.name for item in weights} - set(folder.states)
    buffers = tuple(name for name in folder.models[0].buffer_names if name in others)
    return Catalog(
        NAME,
        "" if version is None else version.text(),
        str(root.resolve()),
        {"tp": len(folder.models) if others else 1},
        (*states, *weights, *keeper.tensors),
        load_layout(_LAYOUT, "deepspeed layout"),
        training,
        aliases=aliases,
        buffers=buffers,
        frozen=tuple(sorted(others - set(buffers))),
        files=folder.files.seen,
        oddities=_cut_weights(folder, unread),
    )


def _states(folder: UniversalFolder) -> list[LocalTensor]:
    """Every state of every parameter."""
    out: list[LocalTensor] = []
    shapes = {
        name: shape
        for model in folder.models
        for group in model.param_shapes or ()
        for name, shape in group.items()
    }
    for name, files in folder.states.items():
        if native_index(name) is not None:
            raise source_error(
                "unsupported-experts",
                f"`{name}` holds the experts of several ranks, joined",
                notes=[f"{files['fp32'].file} does not tell of how many"],
                helps=["convert the checkpoint that the folder was made from"],
            )
        for state, node in files.items():
            kind = "master" if state == "fp32" else state
            out.append(_state(name, kind, node, shapes))
    return out


def _state(name: str, state: str, node: Node, shapes: Mapping[str, tuple[int, ...]]) -> LocalTensor:
    """One file: a dict with the tensor, the tensor alone, or a number."""
    value = node.at("param").value if isinstance(node.value, dict) else node.value
    number = scalar_of(value, node.file)
    if number is not None and (state == "step" or not isinstance(value, TensorRef)):
        return number.local(name, state, ())
    if not isinstance(value, TensorRef):
        raise _no_tensor(node)
    if isinstance(node.value, dict) or shapes.get(name, value.shape) == value.shape:
        return tensor_of(value, name, state, (), node.file)
    shape = shapes[name]  # ZeRO-3 merges partitions without giving them their shape back
    if not value.is_contiguous or value.numel != prod(shape):
        raise source_error(
            "shape-mismatch",
            f"{node.file} has {value.numel} elements, and `{name}` has {prod(shape)}",
            notes=[f"`param_shapes` says {list(shape)}"],
            helps=["convert the checkpoint again that the folder was made from"],
        )
    fragment = Fragment(0, value.numel, node.file, value.byte_offset)
    return LocalTensor(name, state, (), shape, value.dtype, (fragment,) if value.numel else ())


def _no_tensor(node: Node) -> ReshardError:
    return source_error(
        "unexpected-content",
        f"{node.file} holds neither a tensor nor a number",
        helps=["the file was written by another program, or by a version that is not known"],
    )


def _weights(
    folder: UniversalFolder, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[LocalTensor], list[str]]:
    """Weights of the model files, and the names of those that are there only in pieces.

    Of what `zero` holds, a model file of several ranks has a cut, and one of a padded vocabulary
    more; the master weights say the same.
    """
    out: list[LocalTensor] = []
    unread: dict[str, None] = {}
    aliases = find_aliases(folder.models)
    for rank, model in enumerate(folder.models):
        for name, ref in (model.module or {}).items():
            if name in aliases and name not in folder.states:
                continue
            is_whole = len(folder.models) == 1 and ref.shape == shapes.get(name, ref.shape)
            if name in folder.states and not is_whole:
                if ref.numel:  # ZeRO-3 leaves an empty tensor in the place of each weight
                    unread[name] = None
                continue
            coord = () if len(folder.models) == 1 else (("tp", rank),)
            out.append(tensor_of(ref, name, PARAM, coord, model.file))
    return out, list(unread)


def _cut_weights(folder: UniversalFolder, unread: list[str]) -> tuple[Diagnostic, ...]:
    if not unread:
        return ()
    first: ModelFile = folder.models[0]
    return (
        Diagnostic(
            "deepspeed-cut-weights",
            f"weights in the type of the computation are not read of {len(unread)} parameters",
            level="warning",
            notes=(
                f"{first.file} has them cut over ranks or padded, e.g. `{unread[0]}`",
                "their master weights are whole",
            ),
            helps=("round them from the master weights with `--dtype`",),
        ),
    )
