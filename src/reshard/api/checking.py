"""`--check`: a source is held to its own digests or checksums before it is used."""

from __future__ import annotations

from reshard import formats
from reshard.engine.progress import Meter, OnProgress
from reshard.errors import Diagnostic, Exit, ReshardError
from reshard.plan.catalog import Catalog


def check_source(catalog: Catalog, on_progress: OnProgress | None = None) -> tuple[Diagnostic, ...]:
    """Read all bytes of a source, and compare them with what was noted when they were written.

    Universal checkpoints have a digest of every tensor and file, torch files a crc32 of each
    member.

    Returns: warnings: where some of its bytes have neither, and what else was noticed.
    Raises: ReshardError[digest-mismatch | crc-mismatch | ...], everything that is not as written.
    """
    meter = Meter(on_progress, sum(file.nbytes for file in catalog.files), "check")
    checked = formats.check_bytes(catalog.format, catalog, meter.add)
    if checked.faults:
        raise ReshardError(checked.faults, Exit.SOURCE)
    if not checked.unchecked:
        return checked.warnings
    title = formats.SOURCES[catalog.format].title
    number = len(checked.unchecked)
    if number == checked.holding:
        headline = f"a {title} has no checksums of its tensors, so they cannot be checked"
    else:
        headline = f"{number} of {checked.holding} files of a {title} have no checksums"
    return (
        *checked.warnings,
        Diagnostic(
            "no-checksums",
            headline,
            "warning",
            notes=(
                *([] if number == checked.holding else [f"e.g. `{checked.unchecked[0]}`"]),
                "only this is checked: each file is complete, and copies of a tensor agree",
            ),
            helps=("compare it with another copy of it: `reshard diff A B`",),
        ),
    )
