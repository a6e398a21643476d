"""Two checkpoints that are to be compared, in the names of one layout."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.api.naming import find_model
from reshard.api.source import OpenedSource, PathLike, open_source
from reshard.errors import ReshardError


def open_pair(
    a: PathLike,
    b: PathLike,
    *,
    layout: PathLike | None = None,
    layout_name: str | None = None,
    settings: Mapping[str, int] | None = None,
    model: str | None = None,
    names: str | None = None,
) -> tuple[OpenedSource, OpenedSource]:
    """Both sources; where they call their tensors otherwise, in the names of the first one's model.

    Their own names stay where the model of one is not known, or where they are of two models.

    Args:  layout, layout_name: of `a`.  settings, model, names: as for `open_source`, of both.
    Raises: what `open_source` raises.
    """
    left = open_source(
        a, layout=layout, layout_name=layout_name, settings=settings, model=model, names=names
    )
    right = open_source(b, settings=settings, model=model, names=names)
    alike = same_names(left, right) and not settings  # sizes are of a model
    if layout is not None or model is not None or names is not None or alike:
        return left, right
    try:
        one = find_model(left.catalog, settings=settings)
        family, common = one.family.name, one.layout.name
        return (
            open_source(a, settings=settings, model=family, names=common),
            open_source(b, settings=settings, model=family, names=common),
        )
    except ReshardError:
        return left, right


def in_names_of(
    wanted: OpenedSource,
    path: PathLike,
    opened: OpenedSource,
    *,
    settings: Mapping[str, int] | None = None,
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
