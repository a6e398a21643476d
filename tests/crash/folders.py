"""Folders as values, and conversions whose failures are values."""

from __future__ import annotations

from pathlib import Path

import reshard


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def convert(
    source: Path, dst: Path, to: str, *, threads: int = 1, force: bool = False
) -> reshard.Converted:
    """A conversion; to a model folder under the names of the source, which has no configuration."""
    names = "source" if to == "hf" else None
    return reshard.convert(source, dst, to, threads=threads, force=force, names=names)


def attempt(
    source: Path, dst: Path, to: str, *, threads: int = 1, force: bool = False
) -> tuple[reshard.Converted | None, BaseException | None]:
    """A conversion: what it returned, or how it failed; a bug is not caught."""
    try:
        return convert(source, dst, to, threads=threads, force=force), None
    except (reshard.ReshardError, KeyboardInterrupt) as error:
        return None, error


def codes(error: BaseException | None) -> list[str]:
    """What was wrong."""
    if isinstance(error, reshard.ReshardError):
        return [item.code for item in error.diagnostics]
    return [] if error is None else ["interrupted"]


def left_beside(dst: Path) -> list[str]:
    """What is beside a destination.

    What could not be removed at the very end may stay, and is not listed: an empty hidden folder,
    a lock, which is an empty file.
    """
    return sorted(path.name for path in dst.parent.iterdir() if path != dst and not _is_empty(path))


def _is_empty(path: Path) -> bool:
    if path.name.endswith(".reshard-partial"):
        return not list(path.iterdir())
    return path.name.endswith(".reshard-lock") and path.stat().st_size == 0
