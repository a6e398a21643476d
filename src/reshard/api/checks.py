"""Several checks in one report: one that cannot be made is an entry, and the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reshard.api.junit import Case, Suite, junit
from reshard.api.roundtrip_proof import RoundTrip
from reshard.api.verification import Verification
from reshard.errors import Exit, ReshardError, as_bug
from reshard.plan.shown import Plain, Shown
from reshard.plan.text import show_count


@dataclass(frozen=True, slots=True)
class Check:
    """What one check came to.

    Args:  path: of the checkpoint.  result: None where the check could not be made.
           error: why not.  seconds: what it took.
    """

    path: str
    result: RoundTrip | Verification | None
    error: ReshardError | None = None
    seconds: float = 0.0

    @property
    def exit_code(self) -> Exit:
        """What the command ends with if this is the only check."""
        if self.result is not None:
            return self.result.exit_code
        return Exit.OK if self.error is None else self.error.exit_code

    def to_json(self) -> dict[str, object]:
        """As plain JSON values (docs/cli.md)."""
        out: dict[str, object] = {
            "path": self.path,
            "ok": self.exit_code == Exit.OK,
            "exit_code": int(self.exit_code),
            "seconds": round(self.seconds, 3),
        }
        if self.result is not None:
            out["result"] = self.result.to_json()
        if self.error is not None:
            out["error"] = self.error.to_json()
        return out


@dataclass(frozen=True, slots=True, repr=False)
class Report(Plain, Shown, json_keys={"title": None}):
    """The checks of one command.

    Args:  title: of the command, for the report of continuous integration.
    """

    title: str
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> Exit:
        """6 if anything differs; else the code of the first check that could not be made."""
        codes = [check.exit_code for check in self.checks if check.exit_code != Exit.OK]
        if Exit.DIFFERENCE in codes:
            return Exit.DIFFERENCE
        return codes[0] if codes else Exit.OK

    def to_text(self) -> str:
        """How many checks came to what, in a line."""
        failed = sum(check.exit_code == Exit.DIFFERENCE for check in self.checks)
        passed = sum(check.exit_code == Exit.OK for check in self.checks)
        stopped = len(self.checks) - failed - passed
        parts = [f"{passed:,} passed"]
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{stopped:,} could not be checked"] if stopped else []
        return f"{show_count(len(self.checks), 'check')}: {', '.join(parts)}"

    def to_junit(self) -> str:
        """For continuous integration, as JUnit's XML."""
        return junit(self.title, [suite for check in self.checks for suite in _suites(check)])


def check(path: str, make: Callable[[], RoundTrip | Verification]) -> Check:
    """One check; why it could not be made is in the result, a bug of ours too.

    Args:  path: of what is checked, for the report.
    """
    began = time.monotonic()
    try:
        result = make()
    except ReshardError as error:
        return Check(path, None, error, time.monotonic() - began)
    except Exception as error:
        if os.environ.get("RESHARD_DEBUG"):
            raise
        return Check(path, None, as_bug(error), time.monotonic() - began)
    return Check(path, result, None, time.monotonic() - began)


def _suites(check: Check) -> Sequence[Suite]:
    if check.result is not None:
        return check.result.suites(check.seconds)
    return (Suite(check.path, check.path, (Case("read", error=check.error),), check.seconds),)
