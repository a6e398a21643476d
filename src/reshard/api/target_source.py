"""A source opened for a target: in the target's names, on its mesh, and in the types asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from reshard import formats
from reshard.api.dtypes import parse_dtypes
from reshard.api.masters import settle_masters
from reshard.api.source import OpenedSource, PathLike, open_source
from reshard.api.states import select_states
from reshard.api.target_layout import layout_of, same_names
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
    settings: Mapping[str, float] | None = None,
    model: str | None = None,
    names: str | None = None,
    places: Iterable[str] = (),
    dtype: str | None = None,
    check: bool = False,
    on_progress: OnProgress | None = None,
    states: str | Iterable[str] = "all",
    on_drift: OnDrift = "error",
    config: PathLike | None = None,
    leave_out: Iterable[str] = (),
) -> OpenedSource:
    """The source as a target wants it.

    Args:  names: the user's choice, which goes before the names that the target has of its own.
           Others as for `open_source` and `convert`.
    Raises: ReshardError[bad-dtype | bad-option | master-mismatch], and what `open_source` and
            `recast` raise.
    """
    form = formats.TARGETS[target.format]
    own, facts = form.names_of(target)
    described = layout_of(target)
    if described is not None:
        called = described.names or None
        into = described if described.model is not None and names is None else None
        mesh = {axis: target.integer(axis, 1) or 1 for axis in described.mesh}
        alike = same_names(described)
    else:
        called, into, mesh, alike = own or None, None, form.mesh_of(target), frozenset()
    dtypes = parse_dtypes(dtype)
    source = open_source(
        path,
        step=step,
        layout=layout,
        layout_name=layout_name,
        settings={**facts, **(settings or {})},
        model=model,
        names=names or called,
        instead=form.instead if names is None else "",
        into=into,
        mesh=mesh,
        keep="established",
        alike=alike,
        places=places,
        check=check,
        on_progress=on_progress,
        config=config,
        leave_out=leave_out,
    )
    # Weights of another type are made of the master weights, whatever is asked for.
    makes = "param" in dtypes
    used = source.arrangement if makes else select_states(source, states).arrangement
    source = settle_masters(source, used, on_drift, full=check)
    if not dtypes:
        return source
    return replace(source, arrangement=recast(source.arrangement, dtypes))
