"""Opens the files of a checkpoint, each once, and remembers them."""

from __future__ import annotations

import os
from pathlib import Path

from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.siblings import Siblings
from reshard.plan.catalog import SourceFile


class Files:
    """The files below one folder; paths are relative to it.

    Args:  root: the step's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._siblings = Siblings()
        self._seen: dict[str, SourceFile] = {}

    def root_of(self, name: str) -> Node:
        """The object tree of a file.  Raises: what `storage.torch_file` raises."""
        path = self.root / name
        root = self._siblings.root_of(path)
        status = os.stat(path)
        self._seen[name] = SourceFile(name, status.st_size, status.st_mtime_ns)
        return Node(root, name)

    @property
    def seen(self) -> tuple[SourceFile, ...]:
        """Every file that was opened, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))
