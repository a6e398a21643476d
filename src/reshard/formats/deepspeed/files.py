"""Opens the files of a checkpoint, each once, and remembers them."""

from __future__ import annotations

import os
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.deepspeed.node import Node
from reshard.plan.catalog import Left, SourceFile
from reshard.storage.sibling_files import Siblings
from reshard.storage.zip_directory import archive_name

_RANK = "_states"
"""What the names of all ranks' files end with, before their suffix."""


class Files:
    """The files below one folder; paths are relative to it.

    Args:  root: the step's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._siblings = Siblings()
        self._seen: dict[str, SourceFile] = {}
        self.left: list[Left] = []

    def root_of(self, name: str) -> Node:
        """The object tree of a file.

        Raises: ReshardError[renamed-file], and what `storage.torch_file` raises.
        """
        path = self.root / name
        root = self._siblings.root_of(path)
        _refuse_renamed(path)
        status = os.stat(path)
        self._seen[name] = SourceFile(name, status.st_size, status.st_mtime_ns)
        return Node(root, name)

    def leave(self, node: Node, why: str) -> None:
        """Note an entry that no reader has a use for."""
        self.left.append(Left(node.file, node.path, why))

    @property
    def seen(self) -> tuple[SourceFile, ...]:
        """Every file that was opened, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))


def _refuse_renamed(path: Path) -> None:
    """Refuse a file that was written as that of another rank, layer, or expert.

    Source: torch/serialization.py `_open_zipfile_writer_file`: a file's name without its suffix is
    the name of the archive in it.
    """
    name = archive_name(path)
    if name.endswith(_RANK) and name != path.stem:
        raise source_error(
            "renamed-file",
            f"{path.name} was written as {name}.pt",
            notes=[
                "the name of a rank's file tells which part of the model it holds",
                f"in {path.parent}",
            ],
            helps=["give it its own name again, or copy the checkpoint again"],
        )
