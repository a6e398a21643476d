"""A source opened for a target: in the target's names, on its mesh, and in the types asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reshard import formats
from reshard.api.masters import check_masters
from reshard.api.request import PathLike, Request
from reshard.api.source import Naming, OpenedSource, open_source
from reshard.api.states import parse_dtypes, select_states
from reshard.api.user_layouts import one_layout, read_layouts
from reshard.errors import target_error
from reshard.language.layout import Layout
from reshard.plan.recast import recast
from reshard.plan.target import DESCRIBED, Target, parse_target
from reshard.run.states import PARAM


def open_for_target(path: PathLike, target: Target, request: Request) -> OpenedSource:
    """The source as a target wants it; the user's choice goes before the target's own names.

    Raises: ReshardError[bad-dtype | bad-option | master-mismatch], and what `open_source` and
            `recast` raise.
    """
    dtypes = parse_dtypes(request.dtype)
    source = open_source(path, request, _naming(target, request))
    if formats.TARGETS[target.format].weights_only:  # states without names are reported, not wanted
        source = source.with_catalog(replace(source.catalog, withheld=()))
    # Weights of another type are made of the master weights, whatever is asked for.
    makes = PARAM in dtypes
    used = source.arrangement if makes else select_states(source, request.states).arrangement
    warnings = check_masters(source, used, request.on_drift, full=request.check)
    source = source.with_warnings(warnings) if warnings else source
    if not dtypes:
        return source
    return replace(source, arrangement=recast(source.arrangement, dtypes))


def _naming(target: Target, request: Request) -> Naming:
    """What a target asks of the names of its tensors."""
    form = formats.TARGETS[target.format]
    names, facts = form.names_of(target)
    described = target.described
    if described is None:
        instead = form.instead if request.names is None else ""
        mesh = form.mesh_of(target)
        return Naming(
            request.names or names or None, instead, None, mesh, facts, keep="established"
        )
    return Naming(
        request.names or described.names or None,
        form.instead if request.names is None else "",
        described if described.model is not None and request.names is None else None,
        {axis: target.integer(axis, 1) or 1 for axis in described.mesh},
        facts,
        "established",
        same_names(described),
    )


def read_target(text: str) -> Target:
    """What `--to` says.

    Raises: ReshardError[bad-target | unknown-target | layout-missing], and what is wrong with the
            text of a layout.
    """
    target = parse_target(text, formats.TARGETS, formats.described_names())
    return target if target.format != DESCRIBED else replace(target, described=_layout(target))


def _layout(target: Target) -> Layout:
    file = target.layout_file
    if file is None:
        return formats.described_layout(target.layout)
    path, name = file
    layout = one_layout(read_layouts(Path(path)), name)
    if not layout.files:
        raise target_error(
            "bad-target",
            f"layout `{layout.name}` of `{path}` does not describe files",
            notes=["a target is written as its `file` statements say"],
            helps=['add `file "rank{tp}.pt" { state param at "model/{name}" }`'],
        )
    return layout


def same_names(layout: Layout) -> frozenset[str]:
    """Layouts of sources that call tensors as a layout of a target does."""
    shipped = {name: formats.described_layout(name) for name in formats.described_names()}
    names = {name for name, other in shipped.items() if other.names == layout.names}
    return frozenset({layout.name, *names})
