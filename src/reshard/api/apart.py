"""A source and a target that share nothing, whatever links lie between them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from reshard.errors import ReshardError, output_error


def check_apart(src: Path, dst: Path, files: Iterable[Path] = ()) -> None:
    """Refuse a target that is the source, lies inside of it, holds it, or holds what it links to.

    Args:  files: that are read besides the source.
    Raises: ReshardError[output-overlap].
    """
    _check_folder(src, dst)
    if os.path.lexists(dst):  # something of it may be replaced
        _check_files((*_links(src.resolve()), *files), dst)


def check_files_apart(dst: Path, root: str, files: Iterable[str], *, is_folder: bool) -> None:
    """Refuse a target that holds a file that the source reads, or lies in the folder of these.

    Args:  root: that the names of files start from.  is_folder: the source is all of it, not one
           file there.
    Raises: ReshardError[output-overlap].
    """
    if is_folder:
        _check_folder(Path(root), dst)
    if os.path.lexists(dst):
        _check_files((Path(root, file) for file in files), dst)


def _check_folder(src: Path, dst: Path) -> None:
    source, target = src.resolve(), dst.resolve()
    if source == target:
        raise _overlap(dst, "is the source itself")
    if target.is_relative_to(source):
        raise _overlap(dst, f"is inside the source `{src}`")
    if source.is_relative_to(target):
        raise _overlap(dst, f"contains the source `{src}`")


def _check_files(files: Iterable[Path], dst: Path) -> None:
    target = dst.resolve()
    folders: dict[Path, Path] = {}
    for file in files:
        folder = folders.get(file.parent)
        if folder is None:
            folder = folders[file.parent] = file.parent.resolve()
        path = folder / file.name
        if path.is_symlink():
            path = path.resolve()
        if path.is_relative_to(target):
            raise _overlap(dst, f"contains a file that the source reads, `{file}`")


def _links(root: Path) -> Iterator[Path]:
    """Every link below a folder."""
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                yield path


def _overlap(dst: Path, how: str) -> ReshardError:
    return output_error(
        "output-overlap",
        f"the target `{dst}` {how}",
        notes=["reshard never changes a source"],
        helps=["choose a folder outside of the source"],
    )
