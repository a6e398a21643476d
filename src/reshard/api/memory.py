"""How many threads and how large buffers keep a plan below a bound of memory."""

from __future__ import annotations

from dataclasses import dataclass

from reshard.errors import target_error
from reshard.plan.plan import Plan
from reshard.plan.text import show_nbytes

LEAST_BUFFER_NBYTES = 1 << 16
"""Smaller buffers than this cost much time and save nothing."""


_PLANNED_NBYTES = 2048
"""What the plan of one tensor takes at least."""
_FEW = 1000
"""Tensors whose plan is made at once: it takes next to nothing, and tells what all of it takes."""


@dataclass(frozen=True, slots=True)
class Work:
    """The sizes that a plan is run with, and the memory that they need."""

    threads: int
    buffer_nbytes: int
    peak_nbytes: int


@dataclass(frozen=True, slots=True)
class Resident:
    """What this process has in memory, as the system counts it.

    Args:  nbytes: now.  peak: the most so far.
    """

    nbytes: int
    peak: int

    @staticmethod
    def now() -> Resident | None:
        """None where the system does not tell."""
        try:
            with open("/proc/self/status", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file)
            nbytes, peak = (int(fields[key].split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
        except (OSError, KeyError, ValueError):
            return None
        return Resident(nbytes, peak)


def refuse_beforehand(tensors: int, max_nbytes: int | None, before: Resident | None) -> None:
    """Refuse a source whose plan alone would go beyond a bound, before it is made.

    Args:  tensors: of the source.  before: what the process held before it opened the source.
    Raises: ReshardError[memory-bound].
    """
    from reshard.engine.cost import BASE_NBYTES

    now = Resident.now() if max_nbytes is not None else None
    if now is None or before is None or max_nbytes is None or tensors < _FEW:
        return
    foreign = max(0, before.nbytes - BASE_NBYTES)
    memory = now.peak if now.peak > before.peak else now.nbytes
    least = memory - foreign + tensors * _PLANNED_NBYTES
    if least <= max_nbytes:
        return
    raise target_error(
        "memory-bound",
        f"this conversion needs more than {show_nbytes(least)} of memory, "
        f"and {show_nbytes(max_nbytes)} are allowed",
        notes=[f"the lists of {tensors:,} tensors need that much; no plan was made"],
        helps=["allow more with `--max-memory`"],
    )


def fit_memory(
    plan: Plan,
    *,
    threads: int | None = None,
    max_nbytes: int | None = None,
    before: Resident | None = None,
) -> Work:
    """The most threads, and then the largest buffers, that stay within a bound.

    Args:  threads: at most so many; chosen by the machine if None.
           max_nbytes: no bound if None.
           before: what the process held before it planned; what it took since counts too.
    Raises: ReshardError[memory-bound].
    """
    from reshard.engine.cost import BASE_NBYTES, buffer_memory, peak_memory
    from reshard.engine.run import BUFFER_NBYTES, default_threads

    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    most = threads or default_threads()
    least = 0
    now = Resident.now() if before is not None and max_nbytes is not None else None
    foreign = max(0, before.nbytes - BASE_NBYTES) if before is not None else 0
    for count in range(most, 0, -1):
        buffer = BUFFER_NBYTES
        while buffer >= LEAST_BUFFER_NBYTES:
            estimate = least = peak_memory(plan, count, buffer)
            fits = max_nbytes is None or estimate <= max_nbytes
            if fits and now is not None and before is not None:
                memory = now.peak if now.peak > before.peak else now.nbytes
                running = now.nbytes + buffer_memory(plan, count, buffer)
                least = max(least, max(memory, running) - foreign)
            if max_nbytes is None or least <= max_nbytes:
                return Work(count, buffer, estimate)
            buffer //= 2
    raise target_error(
        "memory-bound",
        f"this conversion needs {show_nbytes(least)} of memory, "
        f"and {show_nbytes(max_nbytes or 0)} are allowed",
        notes=["with one thread and the smallest buffers; the interpreter takes a part of it"],
        helps=[f"allow at least {show_nbytes(least)} with `--max-memory`"],
    )
