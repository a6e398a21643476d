"""A report in a file of its own."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from reshard.api.request import PathLike
from reshard.errors import ReshardError, output_error

_MARK = b"<testsuite"
_HEAD_NBYTES = 4096


def check_report(path: PathLike) -> None:
    """Refuse a place where a report would take that of something else; nothing is written.

    Raises: ReshardError[output-foreign | output-unwritable].
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise _unwritable(path, "its folder does not exist") from None
        return
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None
    if stat.S_ISDIR(found.st_mode):
        raise _unwritable(path, "it is a folder")
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_NBYTES)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None
    if _MARK not in head:
        raise output_error(
            "output-foreign",
            f"{path} is not a report, so it is not replaced",
            notes=["a report is written to a new file, or in the place of an earlier one"],
            helps=["choose another name for the report, or remove that file yourself"],
        )


def write_report(path: PathLike, text: str) -> None:
    """Write a report: a file appears whole, a link is followed, a device or a pipe is written to.

    Raises: ReshardError[output-foreign | output-unwritable].
    """
    check_report(path)
    data = text.encode("utf-8", "backslashreplace")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb", buffering=0) as device:
                device.write(data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None


def _replace(file: Path, data: bytes) -> None:
    """Raises: OSError."""
    mask = os.umask(0)
    os.umask(mask)
    fd, made = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(fd, "wb") as out:
            out.write(data)
            os.fchmod(fd, file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~mask)
        os.replace(made, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def _unwritable(path: PathLike, why: str) -> ReshardError:
    return output_error(
        "output-unwritable",
        f"{path} cannot be written",
        notes=[why],
        helps=["check the permissions of its folder, or choose another destination"],
    )
