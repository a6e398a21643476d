"""The command line: one file a command, each a thin layer on `reshard.api`."""

from __future__ import annotations

from reshard.cli.entry import main

__all__ = ["main"]
