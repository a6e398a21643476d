"""`reshard explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import Json, NoColor

Code = Annotated[
    str | None,
    typer.Argument(
        metavar="CODE", show_default=False, help="As in error[CODE]; without it, list all codes."
    ),
]


def explain(code: Code = None, as_json: Json = False, no_color: NoColor = False) -> None:
    """Explain an error code: what it means, why, an example, and the fix."""
    from reshard import api
    from reshard.cli.console import print_json, print_text

    if code is None:
        codes = api.error_codes()
        if as_json:
            print_json({"codes": list(codes)})
        else:
            print_text("\n".join(codes))
        return
    page = api.explain(code)
    if as_json:
        print_json({"code": code, "page": page})
    else:
        print_text(page.rstrip("\n"))
