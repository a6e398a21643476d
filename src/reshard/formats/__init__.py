"""The formats: what can be read, what can be written, and which one a folder is.

A format is a package of its own, imported when it is asked; importing this one imports none.
"""

from __future__ import annotations

from reshard.formats.preparing import left_by, prepare
from reshard.formats.recognize import recognize
from reshard.formats.registry import (
    SOURCES,
    TARGETS,
    VERIFY,
    check_bytes,
    described_layout,
    described_names,
    local_specs,
    read,
    read_described,
)

__all__ = [
    "SOURCES",
    "TARGETS",
    "VERIFY",
    "check_bytes",
    "described_layout",
    "described_names",
    "left_by",
    "local_specs",
    "prepare",
    "read",
    "read_described",
    "recognize",
]
