"""Progress on stderr: a bar on a terminal, one line for each phase elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reshard.cli.console import wants_color

if TYPE_CHECKING:
    from reshard.engine.run import Progress


@contextmanager
def show_progress(
    title: str, *, quiet: bool, color: bool
) -> Iterator[Callable[[Progress], None] | None]:
    """A function for `on_progress`, or None where nobody looks."""
    if quiet or not color or not wants_color(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None)

        def update(progress: Progress) -> None:
            bar.update(task, completed=progress.nbytes_done, total=progress.nbytes_total)

        yield update
