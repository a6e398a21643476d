"""`reshard roundtrip`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from reshard.cli.options import Json, JUnit, NoColor, Options, Quiet, Sources, takes

Via = Annotated[
    list[str],
    typer.Option(
        "--via",
        metavar="TARGET",
        show_default=False,
        help="Target to convert to and back, as for `convert --to`; can be repeated.",
    ),
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="Compare only N tensors, evenly chosen."),
]
AllowLoss = Annotated[
    bool,
    typer.Option("--allow-loss", help="Report data that a target cannot store, but do not fail."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Also fail if a target does not keep a setting."),
]
Materialize = Annotated[
    bool, typer.Option("--materialize", help="Write every target to disk and read it back.")
]
WorkFolder = Annotated[
    str | None,
    typer.Option(
        "--work", metavar="DIR", help="Folder for temporary files; they are removed at the end."
    ),
]


@takes("step", "layout", "settings", "model", "states", "on_drift", "threads", "max_memory")
def roundtrip(
    *,
    sources: Sources,
    via: Via,
    sample: Sample = None,
    allow_loss: AllowLoss = False,
    strict: Strict = False,
    materialize: Materialize = False,
    work: WorkFolder = None,
    junit: JUnit = None,
    options: Options,
    as_json: Json = False,
    quiet: Quiet = False,
    no_color: NoColor = False,
) -> int:
    """Prove that converting to other formats and back loses nothing, bit for bit.

    For each target, the source is converted to universal, to the target, back to universal, and
    from there to the stored arrays of the source. Several targets are tried separately, then in a
    chain. Without --materialize, only metadata that readers need is written to disk. The exit code
    is 6 if anything differs, or if data is lost that neither --states nor --allow-loss permits.
    Otherwise it is that of the first source or target that fails; the others still run.
    """
    from reshard import api
    from reshard.cli.checks import answer, reported
    from reshard.cli.console import print_diagnostics
    from reshard.cli.progress import show_progress

    def proved(source: str) -> api.RoundTrip:
        with show_progress("roundtrip", quiet=quiet, color=not no_color) as on_progress:
            return api.roundtrip(
                source,
                via,
                **options,
                sample=sample,
                allow_loss=allow_loss,
                strict=strict,
                materialize=materialize,
                work=work,
                on_progress=on_progress,
                keep_going=True,
            )

    with reported("reshard roundtrip", junit) as checks:
        for source in sources:
            checks.append(api.check(source, partial(proved, source)))
    report = api.Report("reshard roundtrip", tuple(checks))
    if not (as_json or quiet):
        trips = [item.result for item in checks if isinstance(item.result, api.RoundTrip)]
        warnings = (item for trip in trips for way in trip.ways for item in way.warnings)
        print_diagnostics(dict.fromkeys(warnings), color=not no_color)
    return answer(report, as_json=as_json, quiet=quiet, color=not no_color)
