"""How one parameter lies over the ranks, as the right side of a UCL rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """A part of one dimension.

    Args:  widths: elements on each tp rank; empty for a part that every rank holds whole.
           size: elements of the whole part.
    """

    size: int
    widths: tuple[int, ...] = ()

    @property
    def is_even(self) -> bool:
        """Whether all ranks hold the same share."""
        return len(set(self.widths)) <= 1

    def text(self, name: str, sized: bool) -> str:
        """The axis as UCL."""
        size = f":{self.size}" if sized else ""
        if not self.widths:
            return f"{name}{size}"
        listed = "" if self.is_even else f" as ({', '.join(map(str, self.widths))})"
        return f"{name}{size} over tp{listed}"


COPIED = "[...]"
"""Every rank has the whole tensor."""


def averaged_over_tp() -> str:
    """Every rank has a copy, and their mean counts."""
    return "[...] averaged over tp"


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
    name = "rows" if dim == 0 else "columns" if dim == 1 else "planes"
    if len(sections) == 1:
        term = sections[0].text(name, sized=outer * inner > 1)
    else:
        letters = [_letter(index) for index in range(len(sections))]
        term = " + ".join(s.text(n, sized=True) for s, n in zip(sections, letters, strict=True))
        term = f"({term})"
    if outer > 1:
        term = f"outer:{outer} {term}"
    if inner > 1:
        term = f"{term} inner:{inner}"
    dims = ["_"] * dim + [term]
    if truncated_to is not None:
        dims[0] = f"{term if dim == 0 else 'rows'} truncated to {truncated_to}"
    if ndim > dim + 1:
        dims.append("...")
    return f"[{', '.join(dims)}]"


def copied_body(ndim: int, truncated_to: int | None) -> str:
    """A tensor that every rank has whole."""
    if truncated_to is None or ndim == 0:
        return COPIED
    return f"[rows truncated to {truncated_to}{', ...' if ndim > 1 else ''}]"


def _letter(index: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[index] if index < len(letters) else f"part{index}"
