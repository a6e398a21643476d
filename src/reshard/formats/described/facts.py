"""What files say besides tensors: iteration, parameter groups, what only the writer knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from reshard.errors import Diagnostic, label, source_error
from reshard.formats.described import NAME as FORMAT
from reshard.formats.described.faults import bad_fact
from reshard.formats.described.groups import (
    OF_STAGES,
    STAGE,
    merge,
    settings_of,
    stage_groups,
    stage_of,
)
from reshard.formats.described.states import States
from reshard.formats.described.tree import Where, kept_where, show
from reshard.formats.described.walk import Leaf, Walked
from reshard.language.expression import evaluate, to_text
from reshard.language.layout import Layout
from reshard.plan.catalog import LocalTensor
from reshard.run.run import Group, Run
from reshard.storage.inert import Record
from reshard.storage.kept import Keeper, encode, fingerprint
from reshard.storage.numbers import first_count, number_in, steps_done
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import read_small

PARAM_GROUPS = "param_groups"
"""The fact of a layout that places the param groups."""
_ITERATION, _CONFIG = "iteration", "config"


def read_config(walked: Walked) -> Mapping[str, object] | None:
    """The model's configuration, where a statement names it.

    Raises: ReshardError[ranks-disagree | bad-fact].
    """
    leaf = _agreed(walked).get((_CONFIG, 0))
    return None if leaf is None else _config(leaf)


def read_facts(
    layout: Layout, root: Path, walked: Walked, states: States, mesh: Mapping[str, int]
) -> tuple[Run, list[LocalTensor], tuple[Diagnostic, ...]]:
    """The facts of a run, the tensors inside of objects that are kept, and warnings.

    Args:  root: the folder.

    Raises: ReshardError[ranks-disagree | bad-fact | mixed-runs].
    """
    _check_filled(walked, mesh)
    keeper = _Keeper()
    counts: list[tuple[str, int]] = []
    param_groups: list[Group] = []
    state: dict[str, object] = {}
    schedulers: dict[int, Mapping[str, object]] = {}
    for (name, stage), leaf in _agreed(walked).items():
        if name == _ITERATION:
            counts.append((leaf.shown, _whole_number(leaf)))
        elif name == PARAM_GROUPS:
            param_groups = _param_groups(leaf, states.groups)
        elif name != _CONFIG:
            value = state[name] = keeper.leaf_setting(leaf, leaf.file.name.text)
            if STAGE in leaf.bindings and name in OF_STAGES and isinstance(value, dict):
                schedulers[stage] = value
    kept = _kept(walked, keeper)
    framework: dict[str, object] = {"name": FORMAT, "layout": layout.name}
    groups = [leaf for leaf in walked.of("run") if PARAM_GROUPS in leaf.entry.names]
    if schedulers or any(STAGE in leaf.bindings for leaf in groups):
        merged = merge(stage_groups(groups, states.groups_of), schedulers)
        param_groups = [Group.of(group) for group in merged.groups]
        state |= {"lr_scheduler": merged.scheduler} if merged.scheduler is not None else {}
        framework["groups"] = merged.kind
    if kept:
        framework["kept"] = kept
    if states.uncut:
        framework["uncut"] = states.uncut
    done = steps_done(root, states.tensors)
    if done is not None:
        counts.append(("the optimizer's states", done))
    iteration, warnings = first_count(counts)
    return Run(iteration, tuple(param_groups), state, framework), keeper.tensors, warnings


def _check_filled(walked: Walked, mesh: Mapping[str, int]) -> None:
    """Refuse files that state another mesh than they are of."""
    for leaf in walked.of("fill"):
        if leaf.entry.value is None:
            continue
        here = evaluate(leaf.entry.value, dict(mesh))
        if number_of(leaf.value) != here:
            raise source_error(
                "mixed-runs",
                f"{leaf.shown} is {json.dumps(_plain(leaf.value), default=str)}, and the files "
                f"are of {', '.join(f'{axis}={size}' for axis, size in mesh.items())}",
                notes=[f"the layout says that it is {to_text(leaf.entry.value)}: {here}"],
                helps=["the folder holds files of two runs, or not all of one; copy those of one"],
                primary=label(leaf.entry.span, "read here"),
            )


def _agreed(walked: Walked) -> dict[tuple[str, int], Leaf]:
    """The facts by name, and by stage where each may have its own; all files must say the same."""
    out: dict[tuple[str, int], Leaf] = {}
    for leaf in walked.of("run"):
        name = leaf.entry.names[0]
        first = out.setdefault((name, stage_of(leaf) if name in OF_STAGES else 0), leaf)
        if name == PARAM_GROUPS and STAGE in leaf.bindings:
            continue  # ranks have other parameters in them
        if first is not leaf and _digest(first.value) != _digest(leaf.value):
            raise source_error(
                "ranks-disagree",
                f"files disagree about `{name}`",
                notes=[f"one is at {first.shown}", f"the other at {leaf.shown}"],
                helps=["the files may be of different runs or steps; copy those of one"],
                primary=label(leaf.entry.span, "read here"),
            )
    return out


def _kept(walked: Walked, keeper: _Keeper) -> list[object]:
    """What is kept, with its file and place; what is equal in all files of a kind is there once."""
    alike: dict[tuple[int, Where], list[Leaf]] = {}
    for leaf in walked.of("keep"):
        alike.setdefault((leaf.file.rule, leaf.where), []).append(leaf)
    files: dict[int, set[str]] = {}
    for leaf in walked.leaves:
        files.setdefault(leaf.file.rule, set()).add(leaf.file.path)
    out: list[object] = []
    for (rule, where), leaves in alike.items():
        equal = len({_digest(leaf.value) for leaf in leaves}) == 1
        whole = equal and len(leaves) == len(files[rule])
        for leaf in leaves[:1] if whole else leaves:
            out.append(
                {
                    "file": leaf.file.name.text,
                    "at": {} if whole else dict(leaf.file.bindings),
                    "where": kept_where(where),
                    "value": keeper.json(leaf, leaf.file.name.text if whole else leaf.file.path),
                }
            )
    return out


class _Keeper(Keeper):
    """Keeps leaves; the tensors in them are named after a file and the place of the leaf in it."""

    def json(self, leaf: Leaf, file: str) -> object:
        """The value of a leaf."""
        return self.keep(leaf.value, f"{file}:{show(leaf.where)}", leaf.file.path)

    def leaf_setting(self, leaf: Leaf, file: str) -> object:
        """The value of a leaf that other frameworks have too: with its small tensors' bytes."""
        return self.setting(leaf.value, f"{file}:{show(leaf.where)}", leaf.file.path)


def _digest(value: object) -> str:
    """Equal for equal values of two files."""
    return json.dumps(fingerprint(value), sort_keys=True)


def _whole_number(leaf: Leaf) -> int:
    value = number_of(leaf.value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise bad_fact(leaf, "the iteration is no whole number")


def number_of(value: object) -> object:
    """The number in a tensor of one; any other value as it is."""
    if isinstance(value, TensorRef) and value.numel == 1:
        number = number_in(value.dtype, read_small(value))
        return value if number is None else number
    return value


def _param_groups(leaf: Leaf, groups: Sequence[Sequence[str]]) -> list[Group]:
    return [
        Group(settings, groups[index] if index < len(groups) else None)
        for index, settings in enumerate(settings_of(leaf))
    ]


def _plain(value: object) -> object:
    """A setting, with tensors of one number as that number."""
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return number_of(value)


def _config(leaf: Leaf) -> Mapping[str, object]:
    value = leaf.value
    if isinstance(value, Record):
        value = value.attributes
    if not isinstance(value, dict):
        raise bad_fact(leaf, "a configuration is a dict")
    return {str(key): encode(_plain(item), lambda ref: None) for key, item in value.items()}
