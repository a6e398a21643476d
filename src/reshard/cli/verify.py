"""`reshard verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import (
    Json,
    LayoutFile,
    ModelName,
    Names,
    NoColor,
    Quiet,
    Settings,
    States,
    parse_settings,
    split_layout,
)

First = Annotated[
    str, typer.Argument(metavar="A", show_default=False, help="A checkpoint of any format.")
]
Second = Annotated[
    str | None,
    typer.Argument(metavar="B", show_default=False, help="Another one, to compare it with."),
]


def verify(
    first: First,
    second: Second = None,
    layout: LayoutFile = None,
    settings: Settings = None,
    model: ModelName = None,
    names: Names = None,
    states: States = "all",
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> int:
    """Check the digests of A; or compare A and B bit for bit, whatever their formats."""
    from reshard import api
    from reshard.cli.console import print_answer, print_json
    from reshard.cli.progress import show_progress
    from reshard.errors import Exit

    file, name = split_layout(layout)
    with show_progress("verify", quiet=quiet, color=not no_color) as on_progress:
        found = api.verify(
            first,
            second,
            states=states,
            layout=file,
            layout_name=name,
            settings=parse_settings(settings),
            model=model,
            names=names,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found.to_json(), ok=found.ok)
    elif not (quiet and found.ok):
        print_answer(found.to_text(), color=not no_color)
    return int(Exit.OK if found.ok else Exit.DIFFERENCE)
