"""What the keys of a `torch_dist` checkpoint are.

Source: megatron/core/optimizer/distrib_optimizer.py and optimizer.py `sharded_state_dict`
(core 0.5 to 0.20).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reshard.formats.megatron.buffers import MASTERS
from reshard.run.states import EXTRA, MASTER, PARAM

_CHAINED = re.compile(r"^chained_(\d+)\.")
STATE = "optimizer.state."
_FLAT = re.compile(
    r"^optimizer\.distributed\.dp_group_idx_(\d+)\.gbuf_idx_(\d+)\."
    r"dtype_(\(.*\))\.bucket_idx_(\d+)\.(\w+)$"
)
_STACKED = re.compile(r"(?:^|\.)layers\.(?!\d)")
_EXPERTS = re.compile(r"\.experts\.experts\.(?!\d)")


def stacked_axes(name: str) -> int:
    """Leading axes of a tensor that are no dimensions of its parameter: layers, and experts."""
    return bool(_STACKED.search(name)) + bool(_EXPERTS.search(name))


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
        return StateKey(_unwrapped(name), EXTRA if "_extra_state" in name else PARAM)
    state, _, parameter = rest[len(STATE) :].partition(".")
    return StateKey(_unwrapped(parameter), MASTER if state in MASTERS else state)


def _unwrapped(name: str) -> str:
    """A name without the wrapper that NeMo saves its module in."""
    return name.removeprefix("module.")
