"""`reshard plan`."""

from __future__ import annotations

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
    Settings,
    Source,
    States,
    Step,
    Threads,
    To,
    parse_settings,
    split_layout,
)


def plan(
    source: Source,
    to: To,
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
    no_color: NoColor = False,
) -> None:
    """Say what a conversion would do: every tensor's fate, files, bytes, memory, the proof."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json
    from reshard.cli.progress import show_progress

    file, name = split_layout(layout)
    with show_progress("plan", quiet=False, color=not no_color) as on_progress:
        report = api.plan(
            source,
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
            threads=threads,
            max_memory=max_memory,
            max_file_size=max_file_size,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_json())
        return
    print_diagnostics(report.warnings, color=not no_color)
    print_answer(report.to_text(), color=not no_color)
