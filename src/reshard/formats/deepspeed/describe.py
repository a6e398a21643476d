"""The layout of a checkpoint as UCL, from what the checkpoint says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import Diagnostic, ReshardError, layout_error, warning
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.experts import expert_of
from reshard.formats.deepspeed.node import ranks_disagree
from reshard.formats.deepspeed.sections import COPIED, AffineMap, whole_tensors
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.tp_rules import KEY, UniversalInfo, same_rules, tp_body
from reshard.formats.deepspeed.weights import compare_copies
from reshard.plan.catalog import LocalTensor
from reshard.plan.names import group_names, quantity

MAX_GROUPS = 20
_INDEX = re.compile(r"(?<![^.])(?:0|[1-9]\d*)(?![^.])")
_SLOTS = "ijklmnpqrstuvwxyz"


@dataclass(slots=True)
class Described:
    """A layout and the tensors that it is of.

    Args:  tensors: as collected, but for parameters whose shards no rule can join: these are whole.
    """

    layout: str
    tensors: list[LocalTensor]
    oddities: tuple[Diagnostic, ...]


@dataclass(slots=True)
class _Rules:
    """The right side of every name's rule.

    Args:  maps: of names whose affine map no rule can say.  reasons: why others have no rule.
           constant: names whose copies and cuts look the same.
    """

    bodies: dict[str, str] = field(default_factory=dict)
    maps: dict[str, AffineMap] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)


def describe(source: Source, collected: Collected, *, strict: bool) -> Described:
    """The layout of all that was collected.

    Args:  strict: whether every parameter must have a rule.
    Raises: ReshardError[uncovered-parameter | ranks-disagree | ...].
    """
    by_name = _by_name(collected.tensors)
    tensors = collected.tensors
    if source.grid.tp == 1:
        experts = _expert_bodies(source)
        rules = _Rules({name: experts.get(name, COPIED) for name in by_name})
    else:
        rules = _tp_rules(source, collected, by_name, strict=strict)
        tensors = whole_tensors(tensors, rules.maps, source.grid.tp)
    text = layout_text(
        ("pp", "tp", *source.expert_axes, "dp"),
        rules.bodies,
        local=_local(source, by_name),
        undescribed=[name for name in by_name if name not in rules.bodies],
    )
    return Described(text, tensors, _constant(rules.constant))


def _local(source: Source, names: Iterable[str]) -> dict[str, LocalIndex]:
    """The numbers of experts in names, which count from 0 on every rank."""
    out = {}
    sizes = {*source.expert_sizes.values()}
    for name in names if source.ep > 1 else ():
        size, place = source.expert_size(name), expert_of(name)
        if place is not None:
            slot = f"local expert over {source.ep_axis(size)}" if size > 1 else "expert"
            out[name] = LocalIndex(place[0].count(".") + 1, slot, len(sizes) > 1)
    return out


def _expert_bodies(source: Source) -> dict[str, str]:
    """Rules of AutoEP's tensors, which hold all experts of a rank."""
    out = {}
    for layer in source.fused if source.ep > 1 else ():
        counts = [len(members) for members in layer.experts]
        sizes = "" if len(set(counts)) == 1 else f" as ({', '.join(map(str, counts))})"
        out.update(dict.fromkeys(layer.names, f"[experts over ep{sizes}, ...]"))
    return out


def _by_name(tensors: Iterable[LocalTensor]) -> dict[str, list[LocalTensor]]:
    """One local tensor for every coordinate, by name: the weight, or what has its shape."""
    out: dict[str, dict[object, LocalTensor]] = {}
    for tensor in tensors:
        places = out.setdefault(tensor.name, {})
        first = places.get(tensor.coord)
        if first is None or (first.shape == () and tensor.shape != ()):
            places[tensor.coord] = tensor
    return {name: list(places.values()) for name, places in out.items()}


# Tensor-parallel checkpoints.


def _infos(source: Source) -> dict[int, UniversalInfo]:
    """By pipeline stage, what its files say; a stage that says nothing is left out."""
    out: dict[int, UniversalInfo] = {}
    for (_, mp_rank), model in source.models.items():
        node = model.root.get(KEY)
        if node is None and (0, mp_rank) in source.shards:
            node = source.shards[0, mp_rank].optimizer.get(KEY)
        if node is None:
            continue
        first = out.setdefault(source.grid.stage(mp_rank), UniversalInfo(node))
        if not same_rules(first.node, node):
            raise ranks_disagree(f"`{KEY}`", "one description", first.file, "another", node.file)
    return out


def _tp_rules(
    source: Source,
    collected: Collected,
    by_name: Mapping[str, list[LocalTensor]],
    *,
    strict: bool,
) -> _Rules:
    """The rules of a tensor-parallel checkpoint."""
    out = _Rules()
    infos = _infos(source)
    for name, tensors in by_name.items():
        if name in collected.buffers:
            out.bodies[name] = COPIED
            continue
        info = infos.get(dict(tensors[0].coord).get("pp", 0))
        why = f"there is no `{KEY}`"
        if info is not None:
            try:
                why = _add_rule(source, info, name, tensors, out)
            except ReshardError:
                if strict:
                    raise
                why = "what it says does not fit"
        if why:
            out.reasons.setdefault(why, []).append(name)
    if strict and out.reasons:
        raise _uncovered(source, out.reasons)
    return out


def _add_rule(
    source: Source, info: UniversalInfo, name: str, tensors: Sequence[LocalTensor], out: _Rules
) -> str:
    """The rule of one name; returns why there is none."""
    by_rank = {dict(tensor.coord).get("tp", 0): tensor for tensor in tensors}
    missing = [rank for rank in range(source.grid.tp) if rank not in by_rank]
    if missing:
        rank, tensor = next(iter(by_rank.items()))
        raise ranks_disagree(
            f"`{name}`",
            f"tp rank {rank} has it",
            tensor.fragments[0].file if tensor.fragments else info.file,
            f"tp rank {missing[0]} has not",
            f"the files of tp rank {missing[0]}",
        )
    ordered = [by_rank[rank] for rank in range(source.grid.tp)]
    body, affine = tp_body(info, name, [tensor.shape for tensor in ordered]), None
    if body is None:
        affine = info.affine_map(name)
    elif len(ordered[0].shape) == 1 and info.is_default(name):
        verdict = compare_copies(source.files.root, ordered)
        if verdict == "copies":
            return "no list has it, and all ranks hold the same values"
        if verdict == "constant":
            out.constant.append(name)
    if affine is not None:
        out.maps[name] = affine
    out.bodies[name] = COPIED if body is None else body
    return ""


def _listed(names: Sequence[str]) -> str:
    groups = group_names(names)
    listed = [f"`{group}`{quantity(count)}" for group, count in groups[:MAX_GROUPS]]
    if len(groups) > MAX_GROUPS:
        listed.append(f"and {len(groups) - MAX_GROUPS} more kinds of names")
    return ", ".join(listed)


def _uncovered(source: Source, reasons: Mapping[str, Sequence[str]]) -> ReshardError:
    count = sum(map(len, reasons.values()))
    what = "parameter lies" if count == 1 else "parameters lie"
    return layout_error(
        "uncovered-parameter",
        f"nothing says how {count} {what} over {source.grid.tp} tensor-parallel ranks",
        notes=[
            *(f"{why}: {_listed(names)}" for why, names in reasons.items()),
            f"looked for in {source.first.file}",
        ],
        helps=[
            "state it in a layout: start from `reshard layout show SRC`, and give it with "
            "`--layout FILE`",
        ],
    )


def _constant(names: Sequence[str]) -> tuple[Diagnostic, ...]:
    if not names:
        return ()
    what = "1 parameter is" if len(names) == 1 else f"{len(names)} parameters are"
    return (
        warning(
            "undecided-parameter",
            f"{what} in no list of `{KEY}`, and equal everywhere",
            _listed(names),
            "one number fills the shards of all ranks, so that a copy and a cut look the same",
            "joined along dimension 0, as DeepSpeed does",
            helps=("for a copy, write `[...]` in a layout and give it with `--layout FILE`",),
        ),
    )


# The text: names that differ in their indices share a line.


@dataclass(frozen=True, slots=True)
class LocalIndex:
    """A component of a name that counts from 0 on every rank of a mesh axis.

    Args:  component: position among the parts between dots.  slot: the text of its slot.
           fixed: whether the indices before it stay as they are.
    """

    component: int
    slot: str
    fixed: bool = False


def layout_text(
    mesh: Sequence[str],
    bodies: Mapping[str, str],
    *,
    local: Mapping[str, LocalIndex],
    undescribed: Iterable[str] = (),
) -> str:
    """A layout in canonical form.

    Args:  mesh: its axes.  bodies: by stored name, the right side of its rule.
           local: names with an index that is local to a rank.
           undescribed: names that have no rule; they are listed in comments.
    """
    missing = group_names(undescribed)
    rules = [('"**"', COPIED)]
    if missing or local or not set(bodies.values()) <= {COPIED}:
        rules = _rules(bodies, local)
    width = max((len(pattern) for pattern, _ in rules), default=0)
    lines = ["layout deepspeed {", f"    mesh {', '.join(mesh)}", ""]
    lines += [f"    {pattern:<{width}} = {body}" for pattern, body in rules]
    if missing:
        if rules:
            lines.append("")
        lines.append("    # The checkpoint does not say how these lie over the ranks:")
        lines += [f"    #   {pattern}{quantity(count)}" for pattern, count in missing]
    return "\n".join([*lines, "}"]) + "\n"


def _rules(bodies: Mapping[str, str], local: Mapping[str, LocalIndex]) -> list[tuple[str, str]]:
    groups: dict[str, list[str]] = {}
    for name in bodies:
        groups.setdefault(_skeleton(name, local.get(name)), []).append(name)
    out: list[tuple[str, str]] = []
    for names in groups.values():
        alike = len({bodies[name] for name in names}) == 1
        for group in [names] if alike else [[name] for name in names]:
            out.append((_pattern(group, local.get(group[0])), bodies[group[0]]))
    return list(dict.fromkeys(out))


def _skeleton(name: str, local: LocalIndex | None) -> str:
    if local is None:
        return _INDEX.sub("\0", name)
    parts = name.split(".")
    before = ".".join(parts[: local.component])
    after = _INDEX.sub("\0", ".".join([f"\1{local.slot}", *parts[local.component + 1 :]]))
    return f"{before if local.fixed else _INDEX.sub(chr(0), before)}.{after}"


def _pattern(names: Sequence[str], local: LocalIndex | None) -> str:
    """One pattern over names of one skeleton; an index that never differs stays as it is."""
    out = []
    slots = iter(_SLOTS)
    for position, column in enumerate(zip(*(name.split(".") for name in names), strict=True)):
        if local is not None and position == local.component:
            out.append("{" + local.slot + "}")
        elif _INDEX.fullmatch(column[0]) and len(set(column)) > 1:
            out.append("{" + next(slots) + "}")
        else:
            out.append(re.sub(r'([*{}"\\])', r"\\\1", column[0]))
    return f'"{".".join(out)}"'
