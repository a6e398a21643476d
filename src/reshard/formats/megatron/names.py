"""What names tell: the numbers of layers and experts on a rank, and the keys of `torch_dist`.

Source: megatron/core/optimizer/{distrib_optimizer,optimizer}.py `sharded_state_dict`
(core 0.5 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.run.states import EXTRA, MASTER, PARAM

LAYER = re.compile(r"((?:^|\.)layers\.)(\d+)(?=\.)")
"""The first number of a layer in a name."""

_WHOLE = ("mtp.",)
"""Names whose layers all lie on one stage, and are numbered over the model there."""

_EXPERTS = (
    re.compile(r"(.*?\.local_experts\.)(\d+)(.*)"),
    re.compile(r"(.*\.experts\..*[a-z])(\d+)()"),
)
"""An expert by the number in its name: a module of its own, or a tensor of a grouped one."""
_GROUPED = ("experts.weight1", "experts.weight2")
"""Tensors of all experts of a rank."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of layers, cut over pipeline stages.

    Args:  prefix: of the names, up to the number.  axis: what it is called in the layout.
           counts: layers of every virtual chunk, chunk major, then stage.
    """

    prefix: str
    axis: str
    counts: tuple[int, ...]


def layer_of(name: str) -> tuple[str, int, str] | None:
    """The stack that a name counts a layer of, by its prefix, the number, and the rest of the name;
    None for others.
    """
    match = LAYER.search(name)
    if match is None or name.startswith(_WHOLE):
        return None
    return name[: match.end(1)], int(match[2]), name[match.end() :]


def expert_of(name: str) -> tuple[str, int, str] | None:
    """A name in front of the number of its expert, the number, and the rest; None for others."""
    matches = () if name.endswith(_GROUPED) else (item.fullmatch(name) for item in _EXPERTS)
    match = next((match for match in matches if match is not None), None)
    return None if match is None else (match[1], int(match[2]), match[3])


def stacks_of(names: Iterable[tuple[int, str]], chunks: int) -> Mapping[str, Stack]:
    """Every stack, by prefix.

    Args:  names: with the number of the virtual chunk that holds them.  chunks: how many there are.
    """
    counts: dict[str, list[int]] = {}
    for chunk, name in names:
        layer = layer_of(name)
        if layer is not None:
            stack = counts.setdefault(layer[0], [0] * chunks)
            stack[chunk] = max(stack[chunk], layer[1] + 1)
    return {
        prefix: Stack(prefix, "layer" if len(counts) == 1 else _axis(prefix), tuple(numbers))
        for prefix, numbers in counts.items()
    }


def _axis(prefix: str) -> str:
    words = prefix.removesuffix("layers.").strip(".").replace(".", "_")
    return f"{words}_layer" if words else "layer"


_CHAINED = re.compile(r"^chained_(\d+)\.")
STATE = "optimizer.state."
FSDP_GROUP = "optimizer.param_to_group_meta."
_MODEL, _WRAPPER = "model.", "module."
MASTERS = ("param", "fp32_param")
"""What masters are called among the states."""
_FLAT = re.compile(
    r"^optimizer\.distributed\.dp_group_idx_(\d+)\.gbuf_idx_(\d+)\."
    r"dtype_(\(.*\))\.bucket_idx_(\d+)\.(\w+)$"
)
_STACKED = re.compile(r"(?:^|\.)layers\.(?!\d)")
_STACKED_EXPERTS = re.compile(r"\.experts\.experts\.(?!\d)")


def stacked_axes(name: str) -> int:
    """Leading axes of a tensor that are no dimensions of its parameter: layers, and experts."""
    return bool(_STACKED.search(name)) + bool(_STACKED_EXPERTS.search(name))


@dataclass(frozen=True, slots=True)
class StateKey:
    """A tensor of one parameter."""

    name: str
    state: str


@dataclass(frozen=True, slots=True)
class FlatKey:
    """A bucket of a flat buffer.

    Args:  chained: index of the optimizer.  group: model-parallel rank.  buffer, bucket: indices.
    """

    chained: int
    group: int
    buffer: int
    kinds: str
    bucket: int
    state: str


def key_of(name: str) -> StateKey | FlatKey:
    """What a tensor's key says."""
    chained = _CHAINED.match(name)
    rest = name[chained.end() :] if chained else name
    flat = _FLAT.match(rest)
    if flat:
        group, buffer, kinds, bucket, state = flat.groups()
        index = int(chained.group(1)) if chained else 0
        state = MASTER if state in MASTERS else state
        return FlatKey(index, int(group), int(buffer), kinds, int(bucket), state)
    if not rest.startswith(STATE):
        return StateKey(unwrapped(name), EXTRA if "_extra_state" in name else PARAM)
    state, _, parameter = rest[len(STATE) :].partition(".")
    return StateKey(unwrapped(parameter), MASTER if state in MASTERS else state)


def fsdp_key_of(name: str) -> StateKey:
    """What a tensor's key says in a checkpoint of FSDP.

    Layers and experts are numbered over the model; a gated first layer is two keys, `..._w` and
    `..._v`.
    """
    if name.startswith(STATE):
        parameter, _, state = name.removeprefix(STATE).rpartition(".")
        return StateKey(unwrapped(parameter), state)
    if not name.startswith(_MODEL):
        return StateKey(name, EXTRA)
    parameter = unwrapped(name.removeprefix(_MODEL))
    return StateKey(parameter, EXTRA if "_extra_state" in parameter else PARAM)


def unwrapped(name: str) -> str:
    """A name without the wrappers of its module."""
    while name.startswith(_WRAPPER):
        name = name.removeprefix(_WRAPPER)
    return name


def rule_lines(rules: Mapping[str, str]) -> list[str]:
    """Rules in canonical form: patterns with their dimensions."""
    width = max((len(pattern) for pattern in rules), default=0) + 2
    quoted = ((f'"{pattern}"', dims) for pattern, dims in rules.items())
    return [f"    {pattern:<{width}} = {dims}" for pattern, dims in quoted]
