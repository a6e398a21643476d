"""A source opened for a target: in the target's names, on its mesh, and in the types asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from reshard import formats
from reshard.api.dtypes import parse_dtypes
from reshard.api.masters import settle_masters
from reshard.api.source import OpenedSource, PathLike, open_source
from reshard.api.states import select_states
from reshard.engine.progress import OnProgress
from reshard.plan.build import OnDrift
from reshard.plan.recast import recast
from reshard.plan.target import Target


def open_for_target(
    path: PathLike,
    target: Target,
    *,
    step: str | None = None,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, int] | None = None,
    model: str | None = None,
    names: str | None = None,
    places: Iterable[str] = (),
    dtype: str | None = None,
    check: bool = False,
    on_progress: OnProgress | None = None,
    states: str | Iterable[str] = "all",
    on_drift: OnDrift = "error",
) -> OpenedSource:
    """The source as a target wants it.

    Args:  names: the user's choice, which goes before the names that the target has of its own.
           Others as for `open_source` and `convert`.
    Raises: ReshardError[bad-dtype | bad-option | master-mismatch], and what `open_source` and
            `recast` raise.
    """
    form = formats.TARGETS[target.format]
    dtypes = parse_dtypes(dtype)
    own, facts = form.names_of(target)
    source = open_source(
        path,
        step=step,
        layout=layout,
        layout_name=layout_name,
        settings={**facts, **(settings or {})},
        model=model,
        names=names or own or None,
        instead=form.instead if names is None else "",
        mesh=form.mesh_of(target),
        plain=form.plain if names is None else (names,),
        places=places,
        check=check,
        on_progress=on_progress,
    )
    # Weights of another type are made of the master weights, whatever is asked for.
    makes = "param" in dtypes
    used = source.arrangement if makes else select_states(source, states).arrangement
    source = settle_masters(source, used, on_drift, full=check)
    if not dtypes:
        return source
    return replace(source, arrangement=recast(source.arrangement, dtypes))
