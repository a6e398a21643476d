"""Files that are written by name, of which only so many are open at once."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_OPEN = 256
"""Files that are kept open; one more closes the one that was not used for the longest time."""


@dataclass(slots=True)
class _Open:
    fd: int
    users: int = 0


class OpenFiles:
    """Descriptors by name; safe to use from several threads.

    Args:  reopen: opens a file again that was closed meanwhile.
           before_closing: is called before that, with the name.
    """

    def __init__(
        self, reopen: Callable[[str], int], before_closing: Callable[[str, int], None]
    ) -> None:
        self._reopen = reopen
        self._before_closing = before_closing
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._names: dict[str, None] = {}
        self._lock = threading.RLock()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, make: Callable[[], int]) -> None:
        """Open a file for the first time.

        Raises: OSError.
        """
        with self._lock:
            self._open[name] = _Open(self._with_room(make))
            self._names[name] = None

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[int]:
        """The descriptor of a file that was added; it stays open to the end of the block.

        Raises: OSError; KeyError for a name that was not added.
        """
        with self._lock:
            if name not in self._names:
                raise KeyError(name)
            item = self._open.get(name)
            if item is None:
                item = self._open[name] = _Open(self._with_room(lambda: self._reopen(name)))
            else:
                self._open.move_to_end(name)
            item.users += 1
        try:
            yield item.fd
        finally:
            with self._lock:
                item.users -= 1

    def forget(self, name: str) -> None:
        """Close a file that is not needed any more.

        Raises: OSError.
        """
        with self._lock:
            del self._names[name]
            item = self._open.pop(name, None)
        if item is not None:
            os.close(item.fd)

    def close(self) -> None:
        """Close every file; the first failure is told when all are closed.

        Raises: OSError.
        """
        failure: OSError | None = None
        with self._lock:
            while self._open:
                try:
                    os.close(self._open.popitem()[1].fd)
                except OSError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _with_room(self, make: Callable[[], int]) -> int:
        """A new descriptor; where the system has no more, of a file that is closed for it."""
        if len(self._open) >= MAX_OPEN:
            self._close_oldest()
        while True:
            try:
                return make()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._close_oldest():
                    raise

    def _close_oldest(self) -> bool:
        """Close what was not used for the longest time; False if all are in use."""
        name = next((name for name, item in self._open.items() if not item.users), None)
        if name is None:
            return False
        fd = self._open[name].fd
        self._before_closing(name, fd)
        del self._open[name]
        os.close(fd)
        return True
