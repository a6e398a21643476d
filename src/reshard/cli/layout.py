"""`reshard layout show`, `check`, and `fmt`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import Json, NoColor, Options, takes

layout = typer.Typer(
    name="layout",
    help="Show the layout of a checkpoint; check or format a UCL file.",
    rich_markup_mode=None,
)

File = Annotated[
    str, typer.Argument(metavar="FILE", show_default=False, help="A UCL file, usually `*.ucl`.")
]
Shown = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help="A checkpoint, a UCL file, or a built-in model; NAME#LAYOUT selects one layout of "
        "the model.",
    ),
]
Expanded = Annotated[
    bool,
    typer.Option("--expanded", help="Expand `like` and the other short forms."),
]
Write = Annotated[
    bool, typer.Option("--write", "-w", help="Rewrite the file instead of printing the text.")
]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Print nothing; exit with 3 if the file is not in canonical form."
    ),
]


@layout.command()
@takes("step", "layout", "settings")
def show(
    *,
    source: Shown,
    options: Options,
    expanded: Expanded = False,
    as_json: Json = False,
) -> None:
    """Print as UCL the layout that a checkpoint is read with, or that a file or model states."""
    from reshard import api
    from reshard.cli.console import print_json, print_text

    text = api.layout_text(source, expanded=expanded)
    if text is None:
        text = api.inspect(source, **options).layout
        if expanded:
            text = api.expanded_text(text)
    if as_json:
        print_json({"layout": text})
    else:
        print_text(text.rstrip("\n"), exact=True)


@layout.command()
def check(file: File, as_json: Json = False, no_color: NoColor = False) -> None:
    """Check a UCL file: every axis of every atom once, every atom stored, no rule ambiguous."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json

    result = api.check_layout(file)
    if as_json:
        print_json(result.to_json())
        return
    print_answer(result.to_text(), color=not no_color)
    print_diagnostics(result.warnings, color=not no_color)


@layout.command()
def fmt(file: File, write: Write = False, check: Check = False, as_json: Json = False) -> int:
    """Print a UCL file in canonical form; comments are kept."""
    from reshard import api
    from reshard.cli.console import print_json, print_text
    from reshard.errors import Exit

    text, same = api.format_layout(file, write=write)
    if as_json:
        print_json({"text": text, "canonical": same})
    elif not write and not check:
        print_text(text.rstrip("\n"), exact=True)
    return int(Exit.OK if same or not check else Exit.LAYOUT)
