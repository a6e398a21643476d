"""Reports in JUnit's XML: suites of test cases that passed, failed, or could not be run."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reshard.api.request import PathLike
from reshard.errors import ReshardError, output_error, render_all


@dataclass(frozen=True, slots=True)
class Case:
    """One test case.

    Args:  failure: a headline and the rest, where something differs.
           error: why the case could not be run.
    """

    name: str
    failure: tuple[str, str] | None = None
    error: ReshardError | None = None


@dataclass(frozen=True, slots=True)
class Suite:
    """The test cases of one check.

    Args:  classname: of each case; the path of what is checked.  seconds: of all cases together.
    """

    name: str
    classname: str
    cases: tuple[Case, ...]
    seconds: float = 0.0

    @property
    def failures(self) -> int:
        """Cases in which something differs."""
        return sum(case.failure is not None for case in self.cases)

    @property
    def errors(self) -> int:
        """Cases that could not be run."""
        return sum(case.error is not None for case in self.cases)


def junit(title: str, suites: Sequence[Suite]) -> str:
    """The whole document.

    Args:  title: of the command that made it.
    """
    return "\n".join(
        [
            '<?xml version="1.0" encoding="utf-8"?>',
            f"<testsuites name={_quoted(title)} {_counts(suites)}>",
            *(line for suite in suites for line in _suite(suite)),
            "</testsuites>",
            "",
        ]
    )


def _suite(suite: Suite) -> list[str]:
    lines = [f"  <testsuite name={_quoted(suite.name)} {_counts([suite])}>"]
    for number, case in enumerate(suite.cases):
        # What is measured is the time of them all; the first case has it.
        seconds = 0.0 if number else suite.seconds
        head = (
            f"    <testcase classname={_quoted(suite.classname)} name={_quoted(case.name)} "
            f'time="{seconds:.3f}"'
        )
        if case.error is not None:
            headline = case.error.diagnostics[0].headline
            kind = case.error.diagnostics[0].code
            text = render_all(case.error.diagnostics)
            lines += [f"{head}>", _outcome("error", headline, text, kind), "    </testcase>"]
        elif case.failure is not None:
            headline, text = case.failure
            lines += [f"{head}>", _outcome("failure", headline, text), "    </testcase>"]
        else:
            lines.append(f"{head}/>")
    return [*lines, "  </testsuite>"]


def _counts(suites: Iterable[Suite]) -> str:
    suites = tuple(suites)
    return (
        f'tests="{sum(len(suite.cases) for suite in suites)}" '
        f'failures="{sum(suite.failures for suite in suites)}" '
        f'errors="{sum(suite.errors for suite in suites)}" '
        f'time="{sum(suite.seconds for suite in suites):.3f}"'
    )


def _outcome(tag: str, headline: str, text: str, kind: str = "") -> str:
    from xml.sax.saxutils import escape  # it imports what speaks to the network

    of_kind = f" type={_quoted(kind)}" if kind else ""
    return f"      <{tag} message={_quoted(headline)}{of_kind}>{escape(_clean(text))}</{tag}>"


def _quoted(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    """Without the characters that XML has no form for."""
    return "".join(char for char in text if char in "\n\t" or _has_form(char))


def _has_form(char: str) -> bool:
    """Whether a character may stand in XML 1.0 (section 2.2 of its specification)."""
    return " " <= char <= "\ud7ff" or "\ue000" <= char <= "\ufffd" or char >= "\U00010000"


_MARK = b"<testsuite"
_HEAD_NBYTES = 4096


def check_report(path: PathLike) -> None:
    """Refuse a place where a report would take that of something else; nothing is written.

    Raises: ReshardError[output-foreign | output-unwritable].
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise _unwritable(path, "its folder does not exist") from None
        return
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from None
    if stat.S_ISDIR(status.st_mode):
        raise _unwritable(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
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
    fd, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(fd, "wb") as out:
            out.write(data)
            os.fchmod(fd, file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~mask)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _unwritable(path: PathLike, why: str) -> ReshardError:
    return output_error(
        "output-unwritable",
        f"{path} cannot be written",
        notes=[why],
        helps=["check the permissions of its folder, or choose another destination"],
    )
