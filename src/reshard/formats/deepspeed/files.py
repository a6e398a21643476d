"""Opens the files of a checkpoint, each once, and remembers them."""

from __future__ import annotations

import os
from pathlib import Path

from reshard.formats.deepspeed.node import Node
from reshard.plan.catalog import SourceFile
from reshard.storage.torch_file import TorchFile, open_torch_file


class Files:
    """The files below one folder; paths are relative to it.

    Args:  root: the step's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, SourceFile] = {}

    def open(self, name: str) -> TorchFile:
        """A file of `torch.save`.  Raises: what `storage.torch_file` raises."""
        path = self.root / name
        opened = open_torch_file(path)
        status = os.stat(path)
        self._seen[name] = SourceFile(name, status.st_size, status.st_mtime_ns)
        return opened

    def root_of(self, name: str) -> Node:
        """The object tree of a file."""
        return Node(self.open(name).root, name)

    def relative(self, path: str) -> str:
        """The relative name of a file that was opened."""
        return os.path.relpath(path, self.root)

    @property
    def seen(self) -> tuple[SourceFile, ...]:
        """Every file that was opened, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))
