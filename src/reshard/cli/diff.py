"""`reshard diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import Json, NoColor, Options, Quiet, takes

First = Annotated[
    str, typer.Argument(metavar="A", show_default=False, help="A checkpoint of any format.")
]
Second = Annotated[
    str | None,
    typer.Argument(
        metavar="B", show_default=False, help="Another checkpoint; without it, compare copies in A."
    ),
]


@takes("layout", "settings", "model", "names", "states")
def diff(
    *,
    first: First,
    second: Second = None,
    options: Options,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> int:
    """Show how A and B differ in any formats: which tensors, by how much, and where.

    Without B, show which copies within A differ (norms on tensor parallel ranks, tied weights,
    pipeline copies). --layout applies to A. The exit code is 6 if any tensor differs.
    """
    from reshard import api
    from reshard.cli.console import print_answer, print_json
    from reshard.cli.progress import show_progress
    from reshard.errors import Exit

    with show_progress("diff", quiet=quiet, color=not no_color) as on_progress:
        result = api.diff(
            first,
            second,
            **options,
            on_progress=on_progress,
        )
    if as_json:
        print_json(result.to_json(), ok=result.same)
    elif not (quiet and result.same):
        print_answer(result.to_text(), color=not no_color)
    return int(Exit.OK if result.same else Exit.DIFFERENCE)
