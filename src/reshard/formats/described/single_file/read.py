"""Reads one file that holds a state dict."""

from __future__ import annotations

from pathlib import Path

from reshard.formats.described.read import read_described
from reshard.formats.described.shipped import ANY_FILE, description
from reshard.formats.described.single_file.detect import find_file
from reshard.plan.catalog import Catalog


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a file, or of the one in a folder.

    Raises: what `read_described` raises.
    """
    found = find_file(path)
    assert found is not None, "that is how it was known"
    layout = description(ANY_FILE)
    return read_described(layout, found, step=step, name="single-file")
