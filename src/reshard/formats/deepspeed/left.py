"""Entries of a checkpoint's files that are neither read nor kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reshard.formats.deepspeed.entries import differing, without
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.source import Source
from reshard.plan.catalog import Left

_OPTIMIZER_FILE = ("optimizer_state_dict", "ds_config", "ds_version")
_BASE = ("base_optimizer_state", "optimizer_state_dict")
_DIMENSIONS = ("pp_degree", "tp_degree")
_UNKNOWN = "DeepSpeed is not known to read it"


def left_of(source: Source) -> tuple[Left, ...]:
    """Everything that a reader passed over, with the reason."""
    out = list(source.files.left)
    for model in source.models.values():
        out += _of_model(model)
    for shard in source.shards.values():
        out += _others(shard.root, _OPTIMIZER_FILE, _UNKNOWN)
        out += _settings(source.first.root, shard.root)
        for key in _BASE:
            base = shard.optimizer.get(key)
            if base is not None and isinstance(base.value, dict):
                out += _of_base(base)
    for plain in source.plain.values():
        out += _of_base(plain.inner, known=tuple(key for key, _ in plain.inner.entries()))
    return tuple(out)


def _of_model(model: ModelFile) -> Iterator[Left]:
    sizes = model.root.get("checkpoint_parallel_dimensions")
    if sizes is not None and isinstance(sizes.value, dict):
        yield from _others(sizes, _DIMENSIONS, _UNKNOWN)
    frozen = model.root.get("frozen_param_fragments")
    if frozen is not None and isinstance(frozen.value, dict):
        shapes = tuple(model.frozen_shapes or ())
        yield from _others(frozen, shapes, "`frozen_param_shapes` does not name it")


def _settings(first: Node, own: Node) -> Iterator[Left]:
    """What an optimizer's file says of the configuration otherwise than the model's file."""
    here, there = own.get("ds_config"), first.get("ds_config")
    if here is None:
        return
    if not isinstance(here.value, dict):  # the path of a file
        if there is None or here.value != there.value:
            yield _left(here, f"{first.file} says otherwise, and is believed")
        return
    known = {} if there is None or not isinstance(there.value, dict) else dict(there.entries())
    stated = dict(here.entries())
    for key in differing(known, stated):
        if key in stated:
            yield _left(stated[key], f"{first.file} says otherwise, and is believed")


def _of_base(base: Node, known: Iterable[str] = ("state", "param_groups")) -> Iterator[Left]:
    """Entries of an optimizer's own state dict."""
    yield from _others(base, known, "no optimizer of torch writes it")
    state, groups = base.get("state"), base.get("param_groups")
    if state is None or groups is None or not isinstance(state.value, dict):
        return
    numbers = {
        str(number)
        for group in groups.items()
        for params in [group.get("params")]
        if params is not None
        for number in params.sequence()
    }
    yield from _others(state, numbers, "it is the state of a parameter in no group")


def _others(node: Node, known: Iterable[str], why: str) -> Iterator[Left]:
    for item in without(node, set(known)).values():
        yield _left(item, why)


def _left(node: Node, why: str) -> Left:
    return Left(node.file, node.path, why)
