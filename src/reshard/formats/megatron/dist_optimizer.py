"""What a `torch_dist` checkpoint says of its optimizer beside the tensors: groups, and steps.

Source: megatron/core/optimizer/{optimizer,distrib_optimizer}.py `sharded_state_dict`
(core 0.5 to 0.20).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.dtypes import DType
from reshard.formats.megatron.groups import Groups, claims, optimizers_in
from reshard.formats.megatron.modules import is_expert
from reshard.formats.megatron.names import stacked_axes
from reshard.plan.catalog import Fragment, Left, LocalTensor
from reshard.run.states import EXP_AVG, EXTRA, PARAM, STEP
from reshard.storage.numbers import number_bytes
from reshard.storage.torch_file import TensorRef, read_small

_OBJECT = re.compile(r"(?:chained_(\d+)\.)?optimizer\.distributed\.dp_group_idx_\d+\.optimizer/")


@dataclass(frozen=True, slots=True)
class _Optimizer:
    """One optimizer: its groups, and the number of steps that it states once for all."""

    groups: tuple[Mapping[str, object], ...]
    step: tuple[DType, bytes] | None


def dist_groups(
    common: object, objects: Mapping[str, object], tensors: Sequence[LocalTensor], file: str
) -> tuple[Groups, list[LocalTensor]]:
    """The param groups with the names of their parameters, and every parameter's step.

    Args:  common: the optimizer in the common state, which is in `file`.
           objects: pickled ones by key, as they were found; some optimizers keep their groups
                    there, once for each rank.
    """
    optimizers = [*_optimizers(common), *_of_objects(objects)]
    names = dict.fromkeys(t.name for t in tensors if t.state == EXP_AVG)
    names = names or dict.fromkeys(t.name for t in tensors if t.state not in (PARAM, EXTRA))
    dims = {t.name: len(t.shape) - stacked_axes(t.name) for t in tensors if t.state == PARAM}
    parameters = [(name, count) for name, count in dims.items() if name in names]
    out = Groups()
    steps: dict[str, tuple[DType, bytes]] = {}
    clashing: set[str] = set()
    for optimizer, share in zip(optimizers, _shares(optimizers, parameters), strict=True):
        for group, claim in zip(optimizer.groups, claims(optimizer.groups, share), strict=True):
            out.add(group, claim)
            step = _step(group.get("step")) or optimizer.step
            for name in claim if step is not None else ():
                assert step is not None
                if steps.setdefault(name, step) != step:
                    clashing.add(name)
    counted = {t.name for t in tensors if t.state == STEP}
    numbers = [
        LocalTensor(name, STEP, (), (), dtype, (Fragment(0, 1, file, 0, None, data),))
        for name, (dtype, data) in steps.items()
        if name not in counted and name not in clashing
    ]
    return out, numbers


def _shares(
    optimizers: Sequence[_Optimizer], names: Sequence[tuple[str, int]]
) -> list[Sequence[tuple[str, int]]]:
    """The parameters of every optimizer: one has all; of several, those with expert groups have
    the experts.
    """
    experts = [any(g.get("is_expert_parallel") for g in item.groups) for item in optimizers]
    if not any(experts):
        return [names for _ in optimizers]
    return [[item for item in names if is_expert(item[0]) == expert] for expert in experts]


def _optimizers(common: object) -> Iterator[_Optimizer]:
    for item in optimizers_in(common):
        if not isinstance(item, dict):
            continue
        inner = item.get("optimizer", item)
        if not isinstance(inner, dict) or not isinstance(inner.get("param_groups"), list):
            continue
        groups = tuple(g for g in inner["param_groups"] if isinstance(g, dict))
        step = None
        for state in (item.get("state"), inner.get("state")):
            if isinstance(state, dict):
                step = step or _step(state.get("common_step"))
        yield _Optimizer(groups, step)


def unread_states(common: object, file: str, key: str = "optimizer") -> Iterator[Left]:
    """Entries of `state` in the common state's optimizer, where nothing but a step is read."""
    for name, item in common.items() if isinstance(common, dict) else ():
        if name == "state" and isinstance(item, dict):
            for entry in item:
                if entry != "common_step":
                    yield Left(file, f"{key}.state.{entry}", "it is no number of steps")
        elif name == "optimizer" or isinstance(name, int):
            yield from unread_states(item, file, f"{key}.{name}")


def _of_objects(objects: Mapping[str, object]) -> Iterator[_Optimizer]:
    """Groups that every rank keeps for itself."""
    for key, value in objects.items():
        if _OBJECT.match(key):
            for item in value if isinstance(value, list) else [value]:
                yield from _optimizers(item)


def _step(value: object) -> tuple[DType, bytes] | None:
    if isinstance(value, TensorRef) and value.shape == ():
        return value.dtype, read_small(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_bytes(value)
    return None
