"""Standard output and error as they are: closed, full, or without a reader.

The exit code gives the result of a command, whether or not anybody reads its output.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def open_missing() -> None:
    """Let a stream that the caller closed lead nowhere.

    A file that is opened later would get its number, and what is printed by mistake.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the least number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def put(stream: TextIO, text: str) -> None:
    """A text and a line end; what the stream's encoding lacks is escaped."""
    encoding = stream.encoding or "utf-8"
    with _tolerant(stream):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def flush(stream: TextIO) -> None:
    """Hand over what was printed."""
    with _tolerant(stream):
        stream.flush()


@contextlib.contextmanager
def _tolerant(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads has enough
        _silence(stream)
    except OSError as error:
        _silence(stream)
        if stream is sys.stdout:
            put(sys.stderr, f"standard output cannot be written: {error.strerror or error}")
            flush(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Let the rest of a stream lead nowhere; Python flushes it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


@contextlib.contextmanager
def complete(what: str) -> Iterator[None]:
    """What goes wrong from here on does so after the work was done.

    Args:  what: is there, in words.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {what}") from None
    except Exception as error:
        error.add_note(what)
        raise
