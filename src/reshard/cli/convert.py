"""`reshard convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import CONVERSION, Json, NoColor, Options, Quiet, Source, To, takes

Target = Annotated[str, typer.Argument(metavar="DST", show_default=False, help="Folder to create.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan; write nothing.")]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace DST if reshard wrote everything in it.")
]


@takes(*CONVERSION)
def convert(
    *,
    source: Source,
    target: Target,
    to: To,
    dry_run: DryRun = False,
    force: Force = False,
    options: Options,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Convert a checkpoint to another format or parallel layout, bit for bit or not at all."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json
    from reshard.cli.progress import show_progress
    from reshard.cli.streams import complete

    with show_progress("convert", quiet=quiet, color=not no_color) as on_progress:
        result = api.convert(
            source,
            target,
            to,
            **options,
            force=force,
            on_progress=on_progress,
            dry_run=dry_run,
        )
    with complete("this was a dry run" if dry_run else f"`{target}` is complete"):
        if as_json:
            print_json(result.to_json())
            return
        print_diagnostics(result.report.warnings, color=not no_color)
        if dry_run:
            print_answer(result.report.to_text(), color=not no_color)
        elif not quiet:
            print_answer(result.to_text(), color=not no_color)
