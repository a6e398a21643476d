"""Progress on stderr: a bar on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reshard.cli.console import print_message
from reshard.engine.progress import OnProgress, Progress
from reshard.plan.text import show_nbytes, show_seconds

EVERY_SECONDS = 20.0
"""Between two lines, where there is no terminal."""


@contextmanager
def show_progress(title: str, *, quiet: bool, color: bool) -> Iterator[OnProgress | None]:
    """A function for `on_progress`; None to print nothing.

    Args:  color: whether a bar may have colours; `NO_COLOR` takes them too.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb":
        with _bar(title, color) as update:
            yield update
    else:
        yield Lines(title, print_message, time.monotonic)


class Lines:
    """A line of progress now and then, for logs.

    Args:  say: prints a line.  clock: seconds that go on.
    """

    def __init__(self, title: str, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._title = title
        self._say = say
        self._clock = clock
        self._began = self._printed_at = clock()
        self._part = ""

    def __call__(self, progress: Progress) -> None:
        """Say how far it is, if the last line was a while ago."""
        now = self._clock()
        if progress.title != self._part:
            self._part, self._began = progress.title, now
        if now - self._printed_at < EVERY_SECONDS:
            return
        self._printed_at = now
        self._say(f"{progress.title or self._title}: {line(progress, now - self._began)}")


def line(progress: Progress, seconds: float) -> str:
    """`1.2 GB of 4.8 GB (25 %), 345.0 MB/s, 10.4 s left`."""
    count, total = progress.nbytes_done, progress.nbytes_total
    share = f" ({100 * count // total} %)" if total else ""
    text = f"{show_nbytes(count)} of {show_nbytes(total)}{share}"
    if count and seconds > 0:
        remaining = (total - count) * seconds / count
        text += f", {show_nbytes(round(count / seconds))}/s, {show_seconds(remaining)} left"
    return text


@contextmanager
def _bar(title: str, color: bool) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True, no_color=not color or "NO_COLOR" in os.environ)
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Bar(text, BarColumn(), *columns, console=console, transient=True) as bar:
        tasks = {"": bar.add_task(title, total=None)}
        current = ""

        def update(progress: Progress) -> None:
            nonlocal current
            if progress.title != current:
                bar.update(tasks[current], visible=False)
                current = progress.title
                if current not in tasks:
                    tasks[current] = bar.add_task(current, total=None)
                bar.update(tasks[current], visible=True)
            count, total = progress.nbytes_done, progress.nbytes_total
            bar.update(tasks[current], completed=count, total=total)

        yield update
