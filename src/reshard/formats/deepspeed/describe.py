"""The layout of a checkpoint as UCL, from what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.formats.deepspeed.boxes import whole_tensors
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.experts import native_index
from reshard.formats.deepspeed.groups import ranks_disagree
from reshard.formats.deepspeed.layout_text import LocalIndex, layout_text
from reshard.formats.deepspeed.replicas import Verdict, compare_copies
from reshard.formats.deepspeed.rule import COPIED
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.tp_rules import is_default, tp_body
from reshard.formats.deepspeed.universal_info import KEY, UniversalInfo, same_rules
from reshard.plan.catalog import LocalTensor
from reshard.plan.names import group_names, quantity

MAX_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Described:
    """A layout and the tensors that it is of.

    Args:  tensors: as collected, but for parameters whose shards no rule can join: these are whole.
    """

    layout: str
    tensors: tuple[LocalTensor, ...]
    oddities: tuple[Diagnostic, ...]


def describe(source: Source, found: Collected, *, strict: bool) -> Described:
    """The layout of all that was collected.

    Args:  strict: whether every parameter must have a rule.
    Raises: ReshardError[uncovered-parameter | ranks-disagree | ...].
    """
    mesh = ("pp", "tp", *source.expert_axes, "dp")
    local = _local(source, found)
    by_name = _by_name(found.tensors)
    bodies: dict[str, str] = {}
    tensors = list(found.tensors)
    oddities: list[Diagnostic] = []
    undescribed: list[str] = []
    if source.grid.tp == 1:
        experts = _expert_bodies(source)
        bodies = {name: experts.get(name, COPIED) for name in by_name}
    else:
        infos = _infos(source)
        described = _Rules(source, found, infos, by_name, strict)
        bodies = described.bodies
        undescribed = described.undescribed
        oddities = described.oddities
        if strict and undescribed:
            raise _uncovered(source, undescribed, described.reasons)
        tensors = whole_tensors(tensors, described.maps, source.grid.tp)
    text = layout_text(mesh, bodies, local=local, undescribed=undescribed)
    return Described(text, tuple(tensors), tuple(oddities))


def _local(source: Source, found: Collected) -> dict[str, LocalIndex]:
    out = {}
    sizes = {*source.expert_sizes.values()}
    for tensor in found.tensors if source.ep > 1 else ():
        size = source.expert_size(tensor.name)
        axis = source.ep_axis(size) if size > 1 else None
        index = native_index(tensor.name)
        if index is not None:
            slot = "expert" if axis is None else f"local expert over {axis}"
            out[tensor.name] = LocalIndex(index, slot, len(sizes) > 1)
    return out


def _expert_bodies(source: Source) -> dict[str, str]:
    """Rules of AutoEP's tensors, which hold all experts of a rank."""
    out = {}
    for layer in source.fused if source.ep > 1 else ():
        counts = [len(own) for own in layer.experts]
        sizes = "" if len(set(counts)) == 1 else f" as ({', '.join(map(str, counts))})"
        out.update(dict.fromkeys(layer.names, f"[experts over ep{sizes}, ...]"))
    return out


def _by_name(tensors: Sequence[LocalTensor]) -> dict[str, list[LocalTensor]]:
    """One local tensor for every coordinate, by name: the weight, or what has its shape."""
    found: dict[str, dict[object, LocalTensor]] = {}
    for tensor in tensors:
        own = found.setdefault(tensor.name, {})
        known = own.get(tensor.coord)
        if known is None or (known.shape == () and tensor.shape != ()):
            own[tensor.coord] = tensor
    return {name: list(own.values()) for name, own in found.items()}


def _infos(source: Source) -> dict[int, UniversalInfo]:
    """By pipeline stage, what its files say; a stage that says nothing is left out."""
    out: dict[int, UniversalInfo] = {}
    for mp_rank in source.grid.mp_ranks:
        node = source.models[0, mp_rank].root.get(KEY)
        if node is None and source.shards:
            node = source.shards[0, mp_rank].optimizer.get(KEY)
        if node is None:
            continue
        first = out.setdefault(source.grid.stage(mp_rank), UniversalInfo(node))
        if not same_rules(first.node, node):
            raise ranks_disagree(f"`{KEY}`", "one description", first.file, "another", node.file)
    return out


class _Rules:
    """The rule of every name of a tensor-parallel checkpoint."""

    def __init__(
        self,
        source: Source,
        found: Collected,
        infos: Mapping[int, UniversalInfo],
        by_name: Mapping[str, list[LocalTensor]],
        strict: bool,
    ) -> None:
        self.bodies: dict[str, str] = {}
        self.maps: dict[str, UniversalInfo] = {}
        self.undescribed: list[str] = []
        self.reasons: dict[str, list[str]] = {}
        self.oddities: list[Diagnostic] = []
        self._tp = source.grid.tp
        self._root = source.files.root
        constant: list[str] = []
        for name, tensors in by_name.items():
            if name in found.buffers:
                self.bodies[name] = COPIED
                continue
            info = infos.get(dict(tensors[0].coord).get("pp", 0))
            if info is None:
                self._leave(name, f"there is no `{KEY}`")
                continue
            try:
                body, verdict = self._body(info, name, tensors)
            except ReshardError:
                if strict:
                    raise
                self._leave(name, "what it says does not fit")
                continue
            if verdict == "copies":
                self._leave(name, "no list has it, and all ranks hold the same values")
                continue
            if verdict == "constant":
                constant.append(name)
            self.bodies[name] = body
        if constant:
            self.oddities.append(_constant(constant))

    def _leave(self, name: str, why: str) -> None:
        self.undescribed.append(name)
        self.reasons.setdefault(why, []).append(name)

    def _body(
        self, info: UniversalInfo, name: str, tensors: Sequence[LocalTensor]
    ) -> tuple[str, Verdict]:
        by_rank = {dict(tensor.coord).get("tp", 0): tensor for tensor in tensors}
        missing = [rank for rank in range(self._tp) if rank not in by_rank]
        if missing:
            have = next(iter(by_rank))
            raise ranks_disagree(
                f"`{name}`",
                f"tp rank {have} has it",
                by_rank[have].fragments[0].file if by_rank[have].fragments else info.file,
                f"tp rank {missing[0]} has not",
                f"the files of tp rank {missing[0]}",
            )
        ordered = [by_rank[rank] for rank in range(self._tp)]
        body = tp_body(info, name, [tensor.shape for tensor in ordered])
        if body is None:
            self.maps[name] = info
            return COPIED, "differ"
        verdict: Verdict = "differ"
        if is_default(info, name) and len(ordered[0].shape) == 1:
            verdict = compare_copies(self._root, ordered)
        return body, verdict


def _uncovered(
    source: Source, names: Sequence[str], reasons: Mapping[str, Sequence[str]]
) -> ReshardError:
    notes: list[str] = []
    for why, own in reasons.items():
        groups = group_names(own)
        listed = [f"`{group}`{quantity(count)}" for group, count in groups[:MAX_GROUPS]]
        if len(groups) > MAX_GROUPS:
            listed.append(f"and {len(groups) - MAX_GROUPS} more kinds of names")
        notes.append(f"{why}: {', '.join(listed)}")
    what = "parameter lies" if len(names) == 1 else "parameters lie"
    return ReshardError(
        Diagnostic(
            "uncovered-parameter",
            f"nothing says how {len(names)} {what} over {source.grid.tp} tensor-parallel ranks",
            notes=(*notes, f"looked for in {source.first.file}"),
            helps=(
                "state it in a layout: start from `reshard layout show SRC`, and give it with "
                "`--layout FILE`",
            ),
        ),
        Exit.LAYOUT,
    )


def _constant(names: Sequence[str]) -> Diagnostic:
    groups = [f"`{group}`{quantity(count)}" for group, count in group_names(names)]
    what = "1 parameter is" if len(names) == 1 else f"{len(names)} parameters are"
    return Diagnostic(
        "undecided-parameter",
        f"{what} in no list of `{KEY}`, and equal everywhere",
        level="warning",
        notes=(
            ", ".join(groups[:MAX_GROUPS]),
            "one number fills the shards of all ranks, so that a copy and a cut look the same",
            "joined along dimension 0, as DeepSpeed does",
        ),
        helps=("for a copy, write `[...]` in a layout and give it with `--layout FILE`",),
    )
