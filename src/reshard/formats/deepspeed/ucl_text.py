"""UCL text from a rule for every name: names that differ in their indices share a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reshard.plan.names import group_names, quantity

_INDEX = re.compile(r"(?<![^.])(?:0|[1-9]\d*)(?![^.])")
_SLOTS = "ijklmnpqrstuvwxyz"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

COPIED = "[...]"
"""Every rank has the whole tensor."""
AVERAGED = "[...] averaged over tp"
"""Every rank has a copy, and their mean counts."""


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


@dataclass(frozen=True, slots=True)
class Section:
    """A part of one dimension.

    Args:  widths: elements on each tp rank; empty for a part that every rank holds whole.
           size: elements of the whole part.
    """

    size: int
    widths: tuple[int, ...] = ()

    def text(self, name: str, sized: bool) -> str:
        """The axis as UCL."""
        size = f":{self.size}" if sized else ""
        over = " over tp" if self.widths else ""
        is_even = len(set(self.widths)) <= 1
        return f"{name}{size}{over}{'' if is_even else f' as ({_listed(self.widths)})'}"


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))


def cut_body(
    dim: int,
    ndim: int,
    sections: Sequence[Section],
    *,
    outer: int = 1,
    inner: int = 1,
    truncated_to: int | None = None,
) -> str:
    """A tensor that is cut along one dimension.

    Args:  dim: which; ndim: of how many.  sections: what stands one behind the other along it.
           outer, inner: sizes of the axes around them in the same dimension.
           truncated_to: logical elements along dimension 0.
    """
    if len(sections) == 1:
        name = "rows" if dim == 0 else "columns" if dim == 1 else "planes"
        term = sections[0].text(name, sized=outer * inner > 1)
    else:
        letters = [*_LETTERS, *(f"part{index}" for index in range(26, len(sections)))]
        term = " + ".join(s.text(n, sized=True) for s, n in zip(sections, letters, strict=False))
        term = f"({term})"
    term = f"{f'outer:{outer} ' if outer > 1 else ''}{term}{f' inner:{inner}' if inner > 1 else ''}"
    dims = ["_"] * dim + [term]
    if truncated_to is not None:
        dims[0] = f"{term if dim == 0 else 'rows'} truncated to {truncated_to}"
    return f"[{', '.join([*dims, '...'] if ndim > dim + 1 else dims)}]"


def copied_body(ndim: int, truncated_to: int | None) -> str:
    """A tensor that every rank has whole."""
    if truncated_to is None or ndim == 0:
        return COPIED
    return f"[rows truncated to {truncated_to}{', ...' if ndim > 1 else ''}]"
