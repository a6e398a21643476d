"""Whether a path is a file with weights in it, or a folder with one."""

from __future__ import annotations

from pathlib import Path

_MOST = 8
"""Files of a folder that are opened."""


def detect(path: Path) -> bool:
    """Whether there is one file of torch with weights. It is asked last, and does open the file."""
    return find_file(path) is not None


def find_file(path: Path) -> Path | None:
    """The file; None where there is none, or several."""
    from reshard.formats.described.shipped import ANY_FILE, description, holds

    rule = description(ANY_FILE).files[0]
    found = [path] if path.is_file() else [item for item in path.iterdir() if item.is_file()]
    named = [
        item for item in found if any(x.pattern.match(item.name) is not None for x in rule.names)
    ]
    if len(named) > _MOST:
        return None
    holding = [item for item in named if holds(rule, item)]
    return holding[0] if len(holding) == 1 else None
