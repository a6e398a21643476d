"""Were all files written at about the same time?"""

from __future__ import annotations

from collections.abc import Sequence

from reshard.errors import Diagnostic
from reshard.plan.catalog import SourceFile

HOUR_NS = 3_600_000_000_000
"""Files of one save are not further apart than this, unless they were copied apart."""


def ages(files: Sequence[SourceFile]) -> tuple[Diagnostic, ...]:
    """A warning if files of one kind are much younger than those of the other."""
    models = [file for file in files if file.path.endswith("model_states.pt")]
    optimizers = [file for file in files if file.path.endswith("optim_states.pt")]
    if not models or not optimizers:
        return ()
    kinds = sorted((models, optimizers), key=lambda kind: min(file.mtime_ns for file in kind))
    older = max(kinds[0], key=lambda file: file.mtime_ns)
    younger = min(kinds[1], key=lambda file: file.mtime_ns)
    apart = younger.mtime_ns - older.mtime_ns
    if apart < HOUR_NS:
        return ()
    return (
        Diagnostic(
            "files-apart",
            f"{younger.path} is {apart // HOUR_NS} hours younger than {older.path}",
            level="warning",
            notes=("model files and optimizer files of one save are written together",),
            helps=("make sure that they are of one step; copying can change the times, too",),
        ),
    )
