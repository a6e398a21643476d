"""What of a source is neither read nor kept, in words: grouped by its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reshard.errors import Diagnostic, visible
from reshard.plan.catalog import Left
from reshard.plan.names import group_names
from reshard.plan.text import WIDTH, show_count, wrap

_MAX_SHOWN = 12
"""Names that are listed for one reason."""


def left_lines(left: Sequence[Left]) -> list[str]:
    """A section of the answer of `inspect`; no lines if nothing is left."""
    if not left:
        return []
    out = [f"not read: {_counted(left)}"]
    for why, names in _by_reason(left):
        out += [f"  {line}" for line in wrap(why, WIDTH - 2, indent="  ")]
        out += [f"      {name}" for name in names[:_MAX_SHOWN]]
        if len(names) > _MAX_SHOWN:
            out.append(f"      and {len(names) - _MAX_SHOWN:,} more")
    return out


def left_warnings(left: Sequence[Left]) -> tuple[Diagnostic, ...]:
    """What a conversion says of it: one warning of whole files, one of keys."""
    files = [item for item in left if not item.key]
    keys = [item for item in left if item.key]
    out = []
    if files:
        out.append(
            Diagnostic(
                "side-file-left",
                f"{_counted(files)} of the source {_are(files)} not copied to the target",
                level="warning",
                notes=_notes(files),
                helps=("copy them yourself if you need them",),
            )
        )
    if keys:
        out.append(
            Diagnostic(
                "keys-left",
                f"{_counted(keys)} of the source {_are(keys)} not converted",
                level="warning",
                notes=_notes(keys),
                helps=("keep the source if you need them",),
            )
        )
    return tuple(out)


def _are(left: Sequence[Left]) -> str:
    return "is" if len(left) == 1 else "are"


def _counted(left: Sequence[Left]) -> str:
    files = sum(not item.key for item in left)
    keys = len(left) - files
    return " and ".join(
        show_count(count, noun) for count, noun in ((files, "file"), (keys, "key")) if count
    )


def _notes(left: Sequence[Left]) -> tuple[str, ...]:
    out = []
    for why, names in _by_reason(left):
        more = f", and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
        out.append(f"{why}: {', '.join(f'`{name}`' for name in names[:_MAX_SHOWN])}{more}")
    return tuple(out)


def _by_reason(left: Iterable[Left]) -> list[tuple[str, list[str]]]:
    """For each reason, files by name and keys by pattern; keys that many files have, once."""
    found: dict[str, dict[str, list[str]]] = {}
    for item in left:
        found.setdefault(item.why, {}).setdefault(item.file, []).append(item.key)
    out = []
    for why, files in found.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for file, keys in files.items():
            alike.setdefault(tuple(pattern for pattern, _ in group_names(keys)), []).append(file)
        names: list[str] = []
        for keys_of, same in alike.items():
            if keys_of == ("",):
                names += _files(same)
                continue
            more = f" and {show_count(len(same) - 1, 'file')} more" if len(same) > 1 else ""
            where = f" in {visible(same[0])}{more}" if same[0] else ""
            names += [f"{key}{where}" for key in keys_of]
        out.append((why, names))
    return out


def _files(files: Sequence[str]) -> list[str]:
    """Files whose names differ in their numbers alone, once."""
    alike: dict[str, list[str]] = {}
    for file in files:
        alike.setdefault(re.sub("[0-9]+", "#", file), []).append(file)
    out = []
    for same in alike.values():
        few = same if len(same) < 3 else same[:1]
        more = "" if len(few) == len(same) else f" and {len(same) - 1:,} like it"
        out += [f"{visible(file)}{more}" for file in few]
    return out
