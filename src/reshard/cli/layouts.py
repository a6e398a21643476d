"""`reshard layouts`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import Json, NoColor

File = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        show_default=False,
        help="A built-in model to print as UCL, or your own UCL file to list.",
    ),
]


def layouts(file: File = None, as_json: Json = False, no_color: NoColor = False) -> None:
    """List the built-in models and their layouts, for `--model` and `--names`."""
    from reshard import api
    from reshard.cli.console import print_answer, print_json, print_text

    if file is not None and not file.endswith(".ucl"):
        text = api.shipped_layouts_text(file)
        if as_json:
            print_json({"name": file, "text": text})
        else:
            print_text(text.rstrip("\n"), exact=True)
        return
    listing = api.list_layouts(file)
    if as_json:
        print_json(listing.to_json())
    else:
        print_answer(listing.to_text(), color=not no_color)
