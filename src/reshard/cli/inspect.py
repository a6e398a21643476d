"""`reshard inspect`."""

from __future__ import annotations

from reshard.cli.options import (
    Check,
    Json,
    LayoutFile,
    NoColor,
    Settings,
    Source,
    Step,
    parse_settings,
    split_layout,
)


def inspect(
    source: Source,
    step: Step = None,
    layout: LayoutFile = None,
    settings: Settings = None,
    check: Check = False,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Say what a checkpoint is: format, mesh, states, parameters, oddities."""
    from reshard import api
    from reshard.cli.console import print_answer, print_json
    from reshard.cli.progress import show_progress

    file, name = split_layout(layout)
    with show_progress("inspect", quiet=False, color=not no_color) as on_progress:
        found = api.inspect(
            source,
            step=step,
            layout=file,
            layout_name=name,
            settings=parse_settings(settings),
            check=check,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found.to_json())
    else:
        print_answer(found.to_text(), color=not no_color)
