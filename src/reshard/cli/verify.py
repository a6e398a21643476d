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
    typer.Argument(metavar="B...", show_default=False, help="Others; each is compared with A."),
]
Each = Annotated[
    bool, typer.Option("--each", help="Check each of several by itself; compare none.")
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
    """Check the digests of A; or compare A and B bit for bit, whatever their formats.

    Of several checks, one that cannot be made is reported, and the others go on. The exit code is
    6 if anything differs, else that of the first check that could not be made.
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
