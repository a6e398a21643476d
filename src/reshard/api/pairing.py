"""Two checkpoints that are to be compared, in the names of one layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from reshard.api.dtypes import parse_dtypes
from reshard.api.naming import find_model
from reshard.api.source import OpenedSource, PathLike, open_source
from reshard.errors import ReshardError
from reshard.plan.recast import recast


def open_pair(
    a: PathLike,
    b: PathLike,
    *,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, float] | None = None,
    model: str | None = None,
    names: str | None = None,
    step: str | None = None,
    dtype: str | None = None,
    config: PathLike | None = None,
    leave_out: Iterable[str] = (),
) -> tuple[OpenedSource, OpenedSource]:
    """Both sources; where they call their tensors otherwise, in the names of the first one's model.

    Their own names stay where the model of one is not known, or where they are of two models.

    Args:  layout, layout_name, step, config, leave_out: of `a`.
           dtype: as for `convert`, of `a`: it is rounded before it is compared.
           settings, model, names: as for `open_source`, of both.
    Raises: what `open_source` and `recast` raise.
    """
    opened = partial(
        open_source, a, step=step, settings=settings, config=config, leave_out=tuple(leave_out)
    )
    left = opened(layout=layout, layout_name=layout_name, model=model, names=names)
    left, right = _alike(left, opened, b, layout, settings, model, names)
    dtypes = parse_dtypes(dtype)
    if dtypes:
        left = replace(left, arrangement=recast(left.arrangement, dtypes))
    return left, right


def _alike(
    left: OpenedSource,
    opened: Callable[..., OpenedSource],
    b: PathLike,
    layout: PathLike | None,
    settings: Mapping[str, float] | None,
    model: str | None,
    names: str | None,
) -> tuple[OpenedSource, OpenedSource]:
    right = open_source(b, settings=settings, model=model, names=names)
    alike = same_names(left, right) and not settings  # sizes are of a model
    if names is not None or alike:
        return left, right
    try:
        if layout is not None:  # the other one takes the names of the layout that is given
            given = left.arrangement.layout
            if given.model is None:
                return left, right
            return left, open_source(b, settings=settings, model=given.model.name, names=given.name)
        one = find_model(left.catalog, model=model, settings=settings)
        family, common = one.family.name, one.layout.name
        return (
            opened(model=family, names=common),
            open_source(b, settings=settings, model=family, names=common),
        )
    except ReshardError:
        return left, right


def in_names_of(
    wanted: OpenedSource,
    path: PathLike,
    opened: OpenedSource,
    *,
    settings: Mapping[str, float] | None = None,
    model: str | None = None,
) -> OpenedSource:
    """A source, opened again if that gives its tensors the names that another one's have.

    Args:  path: of `opened`.  settings, model: as for `open_source`, of both.
    """
    if same_names(wanted, opened):
        return opened
    try:
        one = find_model(wanted.catalog, model=model, settings=settings)
        other = find_model(opened.catalog, model=model, settings=settings)
        if one.family.name != other.family.name:
            return opened
        return open_source(path, settings=settings, model=one.family.name, names=one.layout.name)
    except ReshardError:
        return opened


def same_names(left: OpenedSource, right: OpenedSource) -> bool:
    """Whether two sources call their parameters alike, as far as both have them."""
    one, other = (
        {whole.name for whole in side.arrangement.wholes if whole.rule >= 0}
        for side in (left, right)
    )
    return one <= other or other <= one
