"""Work that makes very many objects that live on, unseen by the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def uncollected(work: Callable[P, T]) -> Callable[P, T]:
    """The same function, during which cycles of garbage are not looked for.

    Catalogs and plans have no cycles, and nothing of them becomes garbage while they are made; the
    collector would go through all of it again and again, for a third of the time.
    """

    @wraps(work)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> T:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return work(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return quietly
