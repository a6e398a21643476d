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
        help="A form to go through, as for `convert --to`; may be given several times.",
    ),
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="Compare N tensors alone, evenly chosen."),
]
AllowLoss = Annotated[
    bool,
    typer.Option("--allow-loss", help="What a target cannot hold is told, and is no failure."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="A setting that a target does not keep is a failure too."),
]
Materialize = Annotated[
    bool, typer.Option("--materialize", help="Write every target to disk, and read it from there.")
]
WorkFolder = Annotated[
    str | None,
    typer.Option(
        "--work", metavar="DIR", help="A folder for what is written for a while, then removed."
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
    """Prove that a conversion to other forms and back loses nothing, bit for bit.

    For each target: source to universal, to the target, to universal, and from there every stored
    piece of the source again. Several targets are tried one by one, then one after the other.
    Nothing but what readers look at is written to disk, unless --materialize is given. Exit code 6
    if anything differs, or is lost and neither --states nor --allow-loss says that it may be; else
    that of the first source or target that is not possible, while the others go on.
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
