"""`reshard convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import (
    Check,
    Config,
    Drift,
    Dtype,
    Json,
    LayoutFile,
    LeaveOut,
    MaxFileSize,
    MaxMemory,
    ModelName,
    Names,
    NoColor,
    Places,
    Quiet,
    Settings,
    Source,
    States,
    Step,
    Threads,
    To,
    parse_settings,
    split_layout,
)

Target = Annotated[
    str, typer.Argument(metavar="DST", show_default=False, help="The folder that is made.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Plan only; write nothing.")]
Force = Annotated[
    bool, typer.Option("--force", "-f", help="Replace DST, if reshard wrote all of it.")
]


def convert(
    source: Source,
    target: Target,
    to: To,
    dry_run: DryRun = False,
    force: Force = False,
    step: Step = None,
    layout: LayoutFile = None,
    settings: Settings = None,
    model: ModelName = None,
    names: Names = None,
    config: Config = None,
    leave_out: LeaveOut = None,
    places: Places = None,
    states: States = "all",
    dtype: Dtype = None,
    on_drift: Drift = None,
    check: Check = False,
    threads: Threads = None,
    max_memory: MaxMemory = None,
    max_file_size: MaxFileSize = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> None:
    """Write a checkpoint in another form or at another size, bit for bit or not at all."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json
    from reshard.cli.progress import show_progress
    from reshard.cli.streams import complete

    file, name = split_layout(layout)
    with show_progress("convert", quiet=quiet, color=not no_color) as on_progress:
        done = api.convert(
            source,
            target,
            to,
            step=step,
            layout=file,
            layout_name=name,
            settings=parse_settings(settings),
            model=model,
            names=names,
            config=config,
            leave_out=leave_out or (),
            places=places or (),
            states=states,
            dtype=dtype,
            on_drift="error" if on_drift is None else on_drift.value,
            check=check,
            force=force,
            threads=threads,
            max_memory=max_memory,
            max_file_size=max_file_size,
            on_progress=on_progress,
            dry_run=dry_run,
        )
    with complete("nothing was to be written" if dry_run else f"`{target}` is complete"):
        if as_json:
            print_json(done.to_json())
            return
        print_diagnostics(done.report.warnings, color=not no_color)
        if dry_run:
            print_answer(done.report.to_text(), color=not no_color)
        elif not quiet:
            print_answer(done.to_text(), color=not no_color)
