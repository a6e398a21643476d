"""Reads a pickle without importing or calling anything that it names.

Source: CPython, Lib/pickletools.py (the opcodes, protocols 0 to 5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from reshard.errors import source_error
from reshard.storage.inert import Global
from reshard.storage.pickle_limits import PickleLimits, tree_fault
from reshard.storage.pickle_machine import Fault, Machine, ShortError
from reshard.storage.pickle_values import CONSTRUCTORS, Constructor

__all__ = ["PickleLimits", "read_first_pickle", "read_pickle"]


_MAX_TOLD = 200
_FIRST_NBYTES = 1 << 16
"""Of a pickle that other bytes follow, what is read at first."""


def read_pickle(
    data: bytes,
    where: str,
    persistent_load: Callable[[object], object] | None = None,
    constructors: Mapping[Global, Constructor] | None = None,
    limits: PickleLimits | None = None,
) -> object:
    """The object tree of one pickle: plain values, and `Record`s for everything else.

    Args:  where: what to call the pickle in messages.
           persistent_load: makes an object of a persistent id; without it they are refused.
           constructors: what to make of calls to some globals, besides the safe builtins.
    Raises: ReshardError[bad-pickle].
    """
    limits = limits or PickleLimits()
    if len(data) > limits.nbytes:
        raise source_error(
            "bad-pickle",
            f"the pickle in {where} is too large",
            notes=[f"{len(data)} bytes; at most {limits.nbytes} are read"],
        )
    return _read(data, where, persistent_load, constructors or {}, limits)[0]


def read_first_pickle(
    read: Callable[[int], bytes],
    nbytes: int,
    where: str,
    persistent_load: Callable[[object], object],
) -> tuple[object, bytes]:
    """The object tree of a pickle that other bytes follow, and the bytes of the pickle.

    Args:  read: gives so many bytes from the beginning of the pickle.  nbytes: that there are.
           where, persistent_load: as for `read_pickle`.
    Raises: ReshardError[bad-pickle].
    """
    limits = PickleLimits()
    count = _FIRST_NBYTES
    while True:
        data = read(min(count, limits.nbytes))
        is_all = len(data) < count or len(data) >= min(nbytes, limits.nbytes)
        try:
            root, end = _read(data, where, persistent_load, {}, limits, is_all=is_all)
        except ShortError:
            count *= 4
        else:
            return root, data[:end]


def _read(
    data: bytes,
    where: str,
    persistent_load: Callable[[object], object] | None,
    constructors: Mapping[Global, Constructor],
    limits: PickleLimits,
    *,
    is_all: bool = True,
) -> tuple[object, int]:
    """The tree of a pickle, and where it ends."""
    machine = Machine(data, persistent_load, {**CONSTRUCTORS, **constructors}, limits)
    try:
        root = machine.run()
        if fault := tree_fault(root, limits):
            raise Fault(fault)
        return root, machine.end
    except Fault as fault:
        if isinstance(fault, ShortError) and not is_all:
            raise
        raise _bad(where, machine.at, str(fault)) from None
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        struct.error,
        OverflowError,
        RecursionError,
    ) as error:
        raise _bad(where, machine.at, f"{type(error).__name__}: {error}"[:_MAX_TOLD]) from None


def _bad(where: str, at: int, why: str) -> Exception:
    return source_error(
        "bad-pickle",
        f"the pickle in {where} cannot be read",
        notes=[f"at byte {at}: {why}"],
        helps=["the file is damaged, or was not written by `torch.save`; copy it again"],
    )
