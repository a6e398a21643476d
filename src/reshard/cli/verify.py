"""`reshard verify`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from reshard.cli.options import Json, JUnit, NoColor, Options, Quiet, takes

First = Annotated[
    str, typer.Argument(metavar="A", show_default=False, help="A checkpoint of any format.")
]
Others = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="B...", show_default=False, help="Other checkpoints; each is compared with A."
    ),
]
Each = Annotated[
    bool, typer.Option("--each", help="Check each checkpoint by itself; compare nothing.")
]


@takes("layout", "settings", "model", "names", "states", "step", "dtype", "config", "leave_out")
def verify(
    *,
    first: First,
    others: Others = None,
    each: Each = False,
    junit: JUnit = None,
    options: Options,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> int:
    """Check that A is intact, or compare A and B bit for bit, in any formats.

    If a check fails with an error, the error is reported and the other checks still run. The exit
    code is 6 if anything differs, otherwise that of the first error.
    """
    from reshard import api
    from reshard.cli.checks import answer, reported
    from reshard.cli.progress import show_progress

    pairs: list[tuple[str, str | None]] = [(first, other) for other in others or ()]
    if each or not pairs:
        pairs = [(item, None) for item in (first, *(others or ()))]

    def verified(one: str, other: str | None) -> api.Verification:
        with show_progress("verify", quiet=quiet, color=not no_color) as on_progress:
            return api.verify(
                one,
                other,
                **options,
                on_progress=on_progress,
            )

    with reported("reshard verify", junit) as checks:
        for one, other in pairs:
            checks.append(api.check(other or one, partial(verified, one, other)))
    report = api.Report("reshard verify", tuple(checks))
    return answer(report, as_json=as_json, quiet=quiet, color=not no_color)
