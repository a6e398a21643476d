"""What reshard can do, as functions that return values and print nothing.

The names are those of `reshard` itself, but for `open_checkpoint`, which is `reshard.open`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reshard.api.checkpoint import Checkpoint, TensorInfo, open_checkpoint
    from reshard.api.checks import Check, Report, check
    from reshard.api.comparing import Element, Mismatch
    from reshard.api.converting import Converted, convert, plan
    from reshard.api.differing import Diff, diff
    from reshard.api.drifting import Drift, Drifts
    from reshard.api.explaining import error_codes, explain
    from reshard.api.inspection import Inspection, StateFacts, TensorFacts, inspect
    from reshard.api.junit import write_report
    from reshard.api.layouts import (
        CheckedLayouts,
        FamilyFacts,
        LayoutFacts,
        Layouts,
        LayoutSummary,
        check_layout,
        expanded_text,
        format_layout,
        layout_text,
        list_layouts,
        shipped_layouts_text,
    )
    from reshard.api.loading import Loaded, load
    from reshard.api.roundtrip_proof import (
        Held,
        Lost,
        RoundTrip,
        StateProof,
        WayProof,
        case_failure,
    )
    from reshard.api.roundtripping import roundtrip, roundtrip_cases
    from reshard.api.simulating import Simulation, simulate
    from reshard.api.training_facts import FactChange
    from reshard.api.training_meshes import Meshes, meshes
    from reshard.api.verification import Verification, verify
    from reshard.plan.fate import Fate
    from reshard.plan.report import PlanReport

__all__ = [
    "Check",
    "CheckedLayouts",
    "Checkpoint",
    "Converted",
    "Diff",
    "Drift",
    "Drifts",
    "Element",
    "FactChange",
    "FamilyFacts",
    "Fate",
    "Held",
    "Inspection",
    "LayoutFacts",
    "LayoutSummary",
    "Layouts",
    "Loaded",
    "Lost",
    "Meshes",
    "Mismatch",
    "PlanReport",
    "Report",
    "RoundTrip",
    "Simulation",
    "StateFacts",
    "StateProof",
    "TensorFacts",
    "TensorInfo",
    "Verification",
    "WayProof",
    "case_failure",
    "check",
    "check_layout",
    "convert",
    "diff",
    "error_codes",
    "expanded_text",
    "explain",
    "format_layout",
    "inspect",
    "layout_text",
    "list_layouts",
    "load",
    "meshes",
    "open_checkpoint",
    "plan",
    "roundtrip",
    "roundtrip_cases",
    "shipped_layouts_text",
    "simulate",
    "verify",
    "write_report",
]

_HOMES = {
    "reshard.api.checkpoint": ("Checkpoint", "TensorInfo", "open_checkpoint"),
    "reshard.api.checks": ("Check", "Report", "check"),
    "reshard.api.comparing": ("Element", "Mismatch"),
    "reshard.api.converting": ("Converted", "convert", "plan"),
    "reshard.api.differing": ("Diff", "diff"),
    "reshard.api.drifting": ("Drift", "Drifts"),
    "reshard.api.explaining": ("error_codes", "explain"),
    "reshard.api.inspection": ("Inspection", "StateFacts", "TensorFacts", "inspect"),
    "reshard.api.junit": ("write_report",),
    "reshard.api.layouts": (
        "CheckedLayouts",
        "FamilyFacts",
        "LayoutFacts",
        "Layouts",
        "LayoutSummary",
        "check_layout",
        "expanded_text",
        "format_layout",
        "layout_text",
        "list_layouts",
        "shipped_layouts_text",
    ),
    "reshard.api.loading": ("Loaded", "load"),
    "reshard.api.roundtrip_proof": (
        "Held",
        "Lost",
        "RoundTrip",
        "StateProof",
        "WayProof",
        "case_failure",
    ),
    "reshard.api.roundtripping": ("roundtrip", "roundtrip_cases"),
    "reshard.api.simulating": ("Simulation", "simulate"),
    "reshard.api.training_facts": ("FactChange",),
    "reshard.api.training_meshes": ("Meshes", "meshes"),
    "reshard.api.verification": ("Verification", "verify"),
    "reshard.plan.fate": ("Fate",),
    "reshard.plan.report": ("PlanReport",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """One of the functions and classes, from its module: a command imports what it needs."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
