"""A report in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

from reshard.api.source import PathLike
from reshard.errors import output_error


def write_report(path: PathLike, text: str) -> None:
    """Replace a file by a report; it appears whole.

    Raises: ReshardError[output-unwritable].
    """
    file = Path(path)
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise output_error(
            "output-unwritable",
            f"{path} cannot be written",
            notes=[error.strerror or str(error)],
            helps=["check the permissions of its folder, or choose another destination"],
        ) from None
