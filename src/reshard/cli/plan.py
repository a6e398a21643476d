"""`reshard plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from reshard.cli.options import (
    CONVERSION,
    TO,
    Json,
    NoColor,
    Options,
    is_default,
    parse_nbytes,
    takes,
)
from reshard.errors import Diagnostic, Exit, ReshardError

Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SRC",
        show_default=False,
        help="Folder of a run or of one checkpoint; none with `--simulate`.",
    ),
]
To = Annotated[str | None, TO]
Simulate = Annotated[
    str | None,
    typer.Option(
        "--simulate",
        metavar="CONFIG",
        help="Plan for a model without a checkpoint: its config.json, or the folder of it.",
    ),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="TARGET",
        help="With --simulate: the form of the checkpoint; universal by default.",
    ),
]
Bandwidth = Annotated[
    int | None,
    typer.Option(
        "--bandwidth",
        parser=parse_nbytes,
        metavar="SIZE",
        help="With --simulate: bytes per second, to estimate the time, e.g. 2GB.",
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        min=1,
        metavar="N",
        help="With --simulate: list the meshes of N ranks on which the model can be trained.",
    ),
]
RankMemory = Annotated[
    int | None,
    typer.Option(
        "--rank-memory",
        parser=parse_nbytes,
        metavar="SIZE",
        help="With --ranks: leave out meshes on which a rank holds more, e.g. 80GB.",
    ),
]

_OF_SIMULATION = (
    *("layout", "settings", "places", "states", "dtype"),
    *("threads", "max_memory", "max_file_size"),
)
_OF_MESHES = ("layout", "settings", "places", "dtype")


@takes(*CONVERSION)
def plan(
    *,
    source: Source = None,
    to: To = None,
    simulate: Simulate = None,
    from_: From = None,
    bandwidth: Bandwidth = None,
    ranks: Ranks = None,
    rank_memory: RankMemory = None,
    options: Options,
    as_json: Json = False,
    no_color: NoColor = False,
) -> None:
    """Show what a conversion would do with each tensor, and its files, bytes, memory, and proof."""
    from reshard import api
    from reshard.cli.console import print_answer, print_diagnostics, print_json
    from reshard.cli.progress import show_progress

    answer: api.PlanReport | api.Simulation | api.Meshes
    if simulate is None:
        only = {"--from": from_, "--bandwidth": bandwidth, "--ranks": ranks}
        _refuse({**only, "--rank-memory": rank_memory}, "needs `--simulate CONFIG`")
        if source is None:
            raise _usage("missing argument `SRC`, or `--simulate CONFIG`")
        if to is None:
            raise _usage("missing option `--to`")
        with show_progress("plan", quiet=False, color=not no_color) as on_progress:
            answer = api.plan(source, to, **options, on_progress=on_progress)
    elif source is not None:
        raise _usage("`--simulate` plans without a checkpoint: leave out `SRC`")
    elif ranks is not None:
        _refuse(
            {"--to": to, "--from": from_, "--bandwidth": bandwidth}, "has no use with `--ranks`"
        )
        known = _taken(options, _OF_MESHES, "`--simulate --ranks`")
        answer = api.meshes(simulate, ranks, memory=rank_memory, **known)
    else:
        _refuse({"--rank-memory": rank_memory}, "needs `--ranks N`")
        if to is None:
            raise _usage("missing option `--to`, or `--ranks`")
        known = _taken(options, _OF_SIMULATION, "`--simulate`")
        answer = api.simulate(
            simulate, to, source=from_ or "universal", bandwidth=bandwidth, **known
        )
    if as_json:
        print_json(answer.to_json())
        return
    if isinstance(answer, api.PlanReport):
        print_diagnostics(answer.warnings, color=not no_color)
    print_answer(answer.to_text(), color=not no_color)


def _usage(text: str) -> ReshardError:
    helps = ("see `reshard plan --help`",)
    return ReshardError(Diagnostic("usage", text, helps=helps), Exit.USAGE)


def _refuse(values: dict[str, object], why: str) -> None:
    """Refuse options that were given and would be passed over."""
    for option, value in values.items():
        if value is not None:
            raise _usage(f"`{option}` {why}")


def _taken(options: Options, names: tuple[str, ...], command: str) -> Options:
    """The options that a simulation takes; the others must be as they are by default."""
    for name, value in options.items():
        if name not in names and not is_default(name, value):
            option = "--" + name.replace("_", "-")
            raise _usage(f"{command} does not take `{option}`")
    return {name: options[name] for name in names}
