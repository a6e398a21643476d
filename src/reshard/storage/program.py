"""What writes: the name and version that outputs and journals carry."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def program() -> str:
    """`reshard VERSION`."""
    try:
        return f"reshard {version('reshard')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "reshard"
