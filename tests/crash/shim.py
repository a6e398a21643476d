"""A file system that fails at the N-th call: every call of `os` that reshard makes, counted."""

from __future__ import annotations

import fcntl
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CALLS = (
    *("open", "close", "pread", "preadv", "read", "readv", "pwrite", "pwritev", "write"),
    *("posix_fallocate", "ftruncate", "truncate", "fsync", "fdatasync", "copy_file_range"),
    *("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir"),
    *("scandir", "listdir", "stat", "lstat", "fstat", "statvfs", "fstatvfs"),
)
"""What is counted of `os`; `flock` and opening a file through `io` are counted too."""

WRITES = ("pwrite", "pwritev", "write", "copy_file_range")
READS = ("pread", "preadv", "read", "readv")

CHANGES = (
    *("open", *WRITES, "posix_fallocate", "ftruncate", "fsync", "close", "flock"),
    *("rename", "replace", "link", "mkdir", "unlink", "rmdir"),
)
"""Calls that may leave something behind."""

Fault = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What happens at the N-th call, given its name, the real function, and its arguments."""


def fails(code: int) -> Fault:
    """The call does nothing and fails; a descriptor is closed all the same, as Linux does it."""

    def fault(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name == "close":
            real(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    return fault


def loses_reply(code: int) -> Fault:
    """The call does its work, and then fails, as it may over a network."""

    def fault(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        _drop(name, real(*args, **kwargs))
        raise OSError(code, os.strerror(code))

    return fault


def _drop(name: str, opened: Any) -> None:
    """Close what nobody will hear of."""
    if name == "open":
        os.close(opened)
    elif name in ("io.open", "scandir"):
        opened.close()


def interrupts(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call does its work, and then Ctrl-C is pressed."""
    try:
        _drop(name, real(*args, **kwargs))
    finally:
        signal.raise_signal(signal.SIGINT)


def kills(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`kill -9` before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def kills_after(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`kill -9` after the call; a write has done half of its work."""
    try:
        half(name, real, args, kwargs)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def half(name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A read or a write does half of its work, which is no failure."""
    if name in ("pwrite", "write") and len(args[1]) > 1:
        data = memoryview(args[1])
        return real(args[0], data[: len(data) // 2], *args[2:], **kwargs)
    if name == "preadv" and len(args[1]) == 1 and len(args[1][0]) > 1:
        buffer = args[1][0]
        return real(args[0], [buffer[: len(buffer) // 2]], *args[2:], **kwargs)
    return real(*args, **kwargs)


class Counter:
    """How many calls were made, and which one is to fail."""

    def __init__(self, at: int | None, fault: Fault | None, names: tuple[str, ...] | None) -> None:
        self.count = 0
        self.seen: list[str] = []
        self._at = at
        self._fault = fault
        self._names = names

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function that counts."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._names is not None and name not in self._names:
                return real(*args, **kwargs)
            self.count += 1
            self.seen.append(name)
            if self.count == self._at and self._fault is not None:
                return self._fault(name, real, args, kwargs)
            return real(*args, **kwargs)

        call.real = real  # type: ignore[attr-defined]
        return call


@contextmanager
def counted(
    at: int | None = None, fault: Fault | None = None, names: tuple[str, ...] | None = None
) -> Iterator[Counter]:
    """Count the calls of a block of code, and let one of them, counted from 1, fail."""
    counter = Counter(at, fault, names)
    real = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    flock, opened = fcntl.flock, io.open
    try:
        for name, function in real.items():
            # Nothing here outlives the machine: the disk is spared what it would have to sync.
            work = _nothing if name in ("fsync", "fdatasync") else function
            setattr(os, name, counter.wrap(name, work))
        fcntl.flock = counter.wrap("flock", flock)
        io.open = counter.wrap("io.open", opened)  # type: ignore[assignment]
        yield counter
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        fcntl.flock, io.open = flock, opened


def _nothing(fd: int) -> None:
    """A sync that takes no time."""
