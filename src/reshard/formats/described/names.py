"""Names of parameters without what wrappers of the module add to them."""

from __future__ import annotations

from collections.abc import Sequence


class Unwrapped:
    """What names are without wrappers.

    A wrapper that begins with `_` goes wherever it stands as a part of a name; another one only in
    front, and only where all names have it there.

    Args:  wrappers: as the layout lists them.  names: all that there are.
    """

    def __init__(self, wrappers: Sequence[str], names: Sequence[str]) -> None:
        self._inside = [wrapper for wrapper in wrappers if wrapper.startswith("_")]
        front = [wrapper for wrapper in wrappers if not wrapper.startswith("_")]
        self._front: list[str] = []
        left = [_without(name, self._inside) for name in names]
        while left:
            wrapper = next((w for w in front if all(n.startswith(w) for n in left)), None)
            if wrapper is None:
                break
            self._front.append(wrapper)
            left = [name.removeprefix(wrapper) for name in left]

    def name(self, name: str) -> str:
        """The name of a parameter."""
        out = _without(name, self._inside)
        for wrapper in self._front:
            out = out.removeprefix(wrapper)
        return out


def _without(name: str, wrappers: Sequence[str]) -> str:
    """A name without wrappers, wherever they stand as a part of it."""
    for wrapper in wrappers:
        while True:
            if name.startswith(wrapper):
                name = name.removeprefix(wrapper)
            elif f".{wrapper}" in name:
                name = name.replace(f".{wrapper}", ".")
            else:
                break
    return name
