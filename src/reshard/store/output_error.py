"""What is told when an output cannot be written, and what of it is left."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from reshard.errors import ReshardError, output_error
from reshard.plan.text import show_nbytes


@contextlib.contextmanager
def as_output_error(dst: Path, nbytes: int = 0) -> Iterator[None]:
    """Turn what the system says into an error of ours.

    Args:  nbytes: that are wanted at once, where that is known.
    """
    try:
        yield
    except OSError as error:
        raise _explained(dst, nbytes, error) from None


def _explained(dst: Path, nbytes: int, error: OSError) -> ReshardError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        notes = [f"{nbytes} bytes more are needed at once"] if nbytes else []
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(dst.parent).free
            notes = [f"{note}, {free} are free" for note in notes]
        return output_error(
            "disk-full",
            f"there is no room for {dst}",
            notes=notes,
            helps=["make room, or choose a destination on another disk"],
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return output_error(
            "output-unwritable",
            f"{dst} cannot be written",
            notes=[too_many_open()],
            helps=["allow more open files with `ulimit -n`, or use fewer threads"],
        )
    return output_error(
        "output-unwritable",
        f"{dst} cannot be written",
        notes=[error.strerror or str(error)],
        helps=["check the permissions of its folder, or choose another destination"],
    )


def too_many_open() -> str:
    """That no file can be opened, with the limit of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"too many files are open: this process may have {soft} at once"


def kept_error(
    error: BaseException, dst: Path, partial: str, nbytes: int, total: int
) -> BaseException:
    """An error that also says what is left, and how to go on.

    Args:  partial: name of the folder that is left; empty if `dst` is complete already.
           done: bytes of arrays in it; 0 if that is not known.  total: of the output.
    """
    if partial and not nbytes:
        state = f"the partial output of an earlier run is kept in `{partial}`"
    elif partial:
        state = f"{show_nbytes(nbytes)} of {show_nbytes(total)} are written and kept in `{partial}`"
    else:
        state = f"`{dst.name}` is already complete"
    go_on = "run the same command again to continue from there, or remove that folder"
    helps = (go_on,) if partial else ()
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt("\n".join((f"interrupted; {state}", *helps)))
    if isinstance(error, ReshardError):
        first, *rest = error.diagnostics
        first = replace(first, notes=(*first.notes, state), helps=(*first.helps, *helps))
        return ReshardError((first, *rest), error.exit_code)
    return error
