"""Two checkpoints that are to be compared, in the names of one layout."""

from __future__ import annotations

from dataclasses import replace

from reshard.api.request import PathLike, Request
from reshard.api.source import OpenedSource, open_source
from reshard.api.states import parse_dtypes
from reshard.errors import ReshardError
from reshard.models.find import find_model
from reshard.plan.recast import recast


def open_pair(a: PathLike, b: PathLike, request: Request) -> tuple[OpenedSource, OpenedSource]:
    """Both sources; where they call their tensors otherwise, in the names of the first one's model.

    Their own names stay where the model of one is not known, or where they are of two models.

    Args:  request: its settings, model and names are of both; all else is of `a`.
    Raises: what `open_source` and `recast` raise.
    """
    left, right = _alike(a, b, request)
    dtypes = parse_dtypes(request.dtype)
    if dtypes:
        left = replace(left, arrangement=recast(left.arrangement, dtypes))
    return left, right


def _alike(a: PathLike, b: PathLike, request: Request) -> tuple[OpenedSource, OpenedSource]:
    of_both = Request(settings=request.settings, model=request.model, names=request.names)
    left, right = open_source(a, request), open_source(b, of_both)
    is_same = same_names(left, right) and not request.settings  # sizes are of a model
    if request.names is not None or is_same:
        return left, right
    try:
        if request.layout is not None:  # the other one takes the names of the layout that is given
            layout = left.arrangement.layout
            if layout.model is None:
                return left, right
            named = replace(of_both, model=layout.model.name, names=layout.name)
            return left, open_source(b, named)
    except ReshardError:
        return left, right
    first = None
    for side in (left, right):
        pair = _in_names_of(side, a, b, request, of_both)
        if pair is not None and _parameters(pair[0]) == _parameters(pair[1]):
            return pair
        # A layout may have a tensor of which the other one has only the parts: fused projections.
        first = first or pair
    return first or (left, right)


def _in_names_of(
    side: OpenedSource, a: PathLike, b: PathLike, request: Request, of_both: Request
) -> tuple[OpenedSource, OpenedSource] | None:
    """Both sources in the names of the model that one of them is of; None if there is no way."""
    try:
        one = find_model(side.catalog, model=request.model, settings=request.settings)
        family, common = one.family.name, one.layout.name
        return (
            open_source(a, replace(request, model=family, names=common)),
            open_source(b, replace(of_both, model=family, names=common)),
        )
    except ReshardError:
        return None


def in_names_of(
    model_of: OpenedSource, path: PathLike, opened: OpenedSource, request: Request
) -> OpenedSource:
    """A source, opened again if that gives its tensors the names that another one's have.

    Args:  path: of `opened`.  request: its settings and model are of both.
    """
    if same_names(model_of, opened):
        return opened
    settings, model = request.settings, request.model
    try:
        one = find_model(model_of.catalog, model=model, settings=settings)
        other = find_model(opened.catalog, model=model, settings=settings)
        if one.family.name != other.family.name:
            return opened
        named = Request(settings=settings, model=one.family.name, names=one.layout.name)
        return open_source(path, named)
    except ReshardError:
        return opened


def same_names(left: OpenedSource, right: OpenedSource) -> bool:
    """Whether two sources call their parameters alike, as far as both have them."""
    one, other = _parameters(left), _parameters(right)
    return one <= other or other <= one


def _parameters(source: OpenedSource) -> set[str]:
    return {whole.name for whole in source.arrangement.wholes if whole.rule >= 0}
