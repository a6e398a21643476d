"""`reshard inspect`."""

from __future__ import annotations

from reshard.cli.options import Json, NoColor, Options, Source, takes


@takes("step", "layout", "settings", "check")
def inspect(
    *,
    source: Source,
    options: Options,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Describe a checkpoint: format, mesh, states, parameters, warnings."""
    from reshard import api
    from reshard.cli.console import print_answer, print_json
    from reshard.cli.progress import show_progress

    with show_progress("inspect", quiet=False, color=not no_color) as on_progress:
        inspection = api.inspect(
            source,
            **options,
            on_progress=on_progress,
        )
    if as_json:
        print_json(inspection.to_json())
    else:
        print_answer(inspection.to_text(), color=not no_color)
