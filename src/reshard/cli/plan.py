"""`reshard plan`."""

from __future__ import annotations

from reshard.cli.options import CONVERSION, Json, NoColor, Options, Source, To, takes


@takes(*CONVERSION)
def plan(
    *,
    source: Source,
    to: To,
    options: Options,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Show what a conversion would do with each tensor, and its files, bytes, memory, and proof."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json
    from reshard.cli.progress import show_progress

    with show_progress("plan", quiet=False, color=not no_color) as on_progress:
        report = api.plan(
            source,
            to,
            **options,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_json())
        return
    print_diagnostics(report.warnings, color=not no_color)
    print_answer(report.to_text(), color=not no_color)
