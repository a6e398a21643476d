"""Converts training checkpoints between parallel layouts and frameworks, bit for bit.

    import reshard

    checkpoint = reshard.open("runs/7b")
    reshard.convert("runs/7b", "out/universal", "universal")
    reshard.verify("runs/7b", "out/universal").ok

Importing this imports nothing else; docs/python-api.md describes the names.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reshard.api import (
        Checkpoint,
        Converted,
        Diff,
        Inspection,
        Layouts,
        Loaded,
        Meshes,
        PlanReport,
        RoundTrip,
        Simulation,
        Verification,
        diff,
        inspect,
        meshes,
        plan,
        simulate,
        verify,
    )
    from reshard.api import list_layouts as layouts
    from reshard.api.warned import convert, load, roundtrip
    from reshard.api.warned import open_ as open  # noqa: A004
    from reshard.errors import Diagnostic, ReshardError, ReshardWarning

    __version__: str

__all__ = [
    "Checkpoint",
    "Converted",
    "Diagnostic",
    "Diff",
    "Inspection",
    "Layouts",
    "Loaded",
    "Meshes",
    "PlanReport",
    "ReshardError",
    "ReshardWarning",
    "RoundTrip",
    "Simulation",
    "Verification",
    "__version__",
    "convert",
    "diff",
    "inspect",
    "layouts",
    "load",
    "meshes",
    "open",
    "plan",
    "roundtrip",
    "simulate",
    "verify",
]

_ELSEWHERE = {
    "convert": ("reshard.api.warned", "convert"),
    "layouts": ("reshard.api", "list_layouts"),
    "load": ("reshard.api.warned", "load"),
    "open": ("reshard.api.warned", "open_"),
    "roundtrip": ("reshard.api.warned", "roundtrip"),
    "Diagnostic": ("reshard.errors", "Diagnostic"),
    "ReshardError": ("reshard.errors", "ReshardError"),
    "ReshardWarning": ("reshard.errors", "ReshardWarning"),
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _ELSEWHERE.get(name, ("reshard.api", name))
    return getattr(import_module(module), attribute)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reshard")
    except PackageNotFoundError:
        return "0+unknown"  # a checkout that is not installed


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `reshard.plan` the function: the import system would put the package there."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "plan" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
