"""`reshard layouts`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import Json, NoColor

File = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE", show_default=False, help="A UCL file of your own, in place of what ships."
    ),
]


def layouts(file: File = None, as_json: Json = False, no_color: NoColor = False) -> None:
    """List the models whose layouts ship, and their layouts: what `--names` and `--model` take."""
    from reshard import api
    from reshard.cli.console import print_answer, print_json

    found = api.list_layouts(file)
    if as_json:
        print_json(found.to_json())
    else:
        print_answer(found.to_text(), color=not no_color)
