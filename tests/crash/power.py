"""What a disk holds after the machine went down: what was synced, and of the rest nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def recorded(log: Path) -> Iterator[None]:
    """Note every write before it is made, and every sync after it."""
    real = {name: getattr(os, name) for name in ("open", "pwrite", "write", "fsync", "rename")}
    out = _unwrapped(real["open"])(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    paths: dict[int, str] = {}

    def note(*event: object) -> None:
        real_write(out, json.dumps(event).encode() + b"\n")

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        fd = real["open"](path, *args, **kwargs)
        paths[fd] = os.fspath(path)
        return int(fd)

    def pwritten(fd: int, data: Any, byte_offset: int) -> Any:
        note("write", paths[fd], byte_offset, len(data))
        return real["pwrite"](fd, data, byte_offset)

    def appended(fd: int, data: Any) -> Any:
        note("append", paths[fd], len(data))
        return real["write"](fd, data)

    def synced(fd: int) -> None:
        real["fsync"](fd)
        note("sync", paths[fd])

    def renamed(old: Any, new: Any) -> None:
        note("rename", os.fspath(old), os.fspath(new))
        real["rename"](old, new)

    real_write: Callable[[int, bytes], int] = _unwrapped(real["write"])
    made = {
        "open": opened,
        "pwrite": pwritten,
        "write": appended,
        "fsync": synced,
        "rename": renamed,
    }
    try:
        for name, function in made.items():
            setattr(os, name, function)
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the system below what counts calls."""
    return getattr(function, "real", function)


def lose_what_was_not_synced(log: Path) -> int:
    """Make zeros of what was written and not synced, and cut off what was added; in bytes."""
    pending: dict[str, list[tuple[int, int]]] = {}
    sizes: dict[str, int] = {}
    unsynced: dict[str, int] = {}
    for line in log.read_text(encoding="ascii").splitlines():
        kind, path, *rest = json.loads(line)
        if kind == "write":
            pending.setdefault(path, []).append((rest[0], rest[1]))
        elif kind == "append":
            unsynced[path] = unsynced.get(path, 0) + rest[0]
        elif kind == "sync":
            pending.pop(path, None)
            sizes[path] = sizes.get(path, 0) + unsynced.pop(path, 0)
        elif os.path.lexists(rest[0]) and not os.path.lexists(path):
            for known in (pending, sizes, unsynced):
                _move(known, path, rest[0])
    lost = 0
    for path, ranges in pending.items():
        if os.path.exists(path):
            with open(path, "r+b") as file:
                for byte_offset, nbytes in ranges:
                    file.seek(byte_offset)
                    file.write(bytes(nbytes))
                    lost += nbytes
    for path in unsynced:
        if os.path.exists(path):
            lost += max(0, os.path.getsize(path) - sizes.get(path, 0))
            os.truncate(path, sizes.get(path, 0))
    return lost


def _move(known: dict[str, Any], old: str, new: str) -> None:
    for path in [p for p in known if p == old or p.startswith(old + "/")]:
        known[new + path[len(old) :]] = known.pop(path)
