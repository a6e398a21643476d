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

    Returns: a warning, where the format has neither.
    Raises: ReshardError[digest-mismatch | crc-mismatch | ...], everything that is not as written.
    """
    if not formats.has_checksums(catalog.format):
        title = formats.SOURCES[catalog.format].title
        return (
            Diagnostic(
                "no-checksums",
                f"a {title} carries no checksums of its tensors, so they cannot be checked",
                "warning",
                notes=("that its files are whole was checked, and that copies in them agree is",),
                helps=("compare it with another copy of it: `reshard diff A B`",),
            ),
        )
    meter = Meter(on_progress, sum(file.nbytes for file in catalog.files), "check")
    faults = formats.check_bytes(catalog.format, catalog, meter.add)
    if faults:
        raise ReshardError(faults, Exit.SOURCE)
    return ()
