"""Commands that check one checkpoint or several, and the report that they write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reshard.errors import Diagnostic, Exit, ReshardError, as_bug

if TYPE_CHECKING:
    from reshard.api import Check, Report


@contextmanager
def reported(title: str, junit: str | None) -> Iterator[list[Check]]:
    """A list to put the checks into; the report is written however they end.

    Args:  title: of the command.  junit: the file; None for no report.
    """
    checks: list[Check] = []
    if junit is not None:
        from reshard.api.junit import check_report

        check_report(junit)
    try:
        yield checks
    except BaseException as error:
        if junit is not None:
            write_failure(title, junit, checks, error)
        raise
    if junit is not None:
        from reshard import api

        api.write_report(junit, api.Report(title, tuple(checks)).to_junit())


def write_failure(title: str, junit: str, checks: list[Check], error: BaseException) -> None:
    """A report of a command that was ended: what was checked, and why there is no more.

    That the report cannot be written is no news then.
    """
    from reshard import api

    if isinstance(error, KeyboardInterrupt):
        error = ReshardError(Diagnostic("interrupted", "interrupted"), Exit.INTERRUPTED)
    if not isinstance(error, Exception):
        return
    failure = error if isinstance(error, ReshardError) else as_bug(error)
    stopped = api.Check(title, None, failure)
    try:
        api.write_report(junit, api.Report(title, (*checks, stopped)).to_junit())
    except ReshardError:
        return


def answer(report: Report, *, as_json: bool, quiet: bool, color: bool) -> int:
    """Print what the checks came to.

    Returns: the exit code.
    Raises: ReshardError, why the only check could not be made, or none of its targets.
    """
    from reshard.cli.console import print_answer, print_error, print_json, print_message

    code = int(report.exit_code)
    for check in report.checks:
        _annotate(check)
    if len(report.checks) == 1:
        only = report.checks[0]
        error = only.error or _nothing_possible(only)
        if error is not None:
            raise error
        assert only.result is not None
        if as_json:
            print_json(only.result.to_json(), ok=not code)
        elif code or not quiet:
            print_answer(only.result.to_text(), color=color)
        return code
    if as_json:
        print_json(report.to_json(), ok=not code)
        return code
    for check in report.checks:
        if check.error is not None:
            print_message(f"{check.path} could not be checked", color=color)
            print_error(check.error, color=color)
            print_message("", color=color)
        elif check.result is not None and (check.exit_code or not quiet):
            print_answer(f"{check.result.to_text()}\n", color=color)
    if code or not quiet:
        print_answer(report.to_text(), color=color)
    return code


def _annotate(check: Check) -> None:
    """Tell GitHub what differs, a line for each case."""
    from reshard.cli.console import annotation

    if check.result is None:
        return
    for suite in check.result.suites(check.seconds):
        name = suite.name if check.path in suite.name else f"{check.path}, {suite.name}"
        for case in suite.cases:
            if case.failure is not None:
                annotation("error", "difference", f"{name}: {case.failure[0]}")


def _nothing_possible(check: Check) -> ReshardError | None:
    """Why no target of a round trip is possible; None where one is."""
    from reshard import api

    ways = check.result.ways if isinstance(check.result, api.RoundTrip) else ()
    errors = [way.error for way in ways if way.error is not None]
    if not errors or len(errors) < len(ways):
        return None
    items = dict.fromkeys(item for error in errors for item in error.diagnostics)
    return ReshardError(items, errors[0].exit_code)
