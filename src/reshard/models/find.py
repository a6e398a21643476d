"""The model that a checkpoint is of, and the names of another of its layouts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reshard.errors import ReshardError, layout_error
from reshard.language.layout import Layout
from reshard.language.library import Family, name_form, shipped
from reshard.models.name_forms import unwrapped, with_prefixes, with_tied_head, without_buffers
from reshard.models.nearest import (
    UNFITTING,
    Found,
    indescribable,
    listed,
    nearest,
    nothing_fits,
    several_fit,
    stated_layouts,
    unknown_type,
)
from reshard.models.stated import guessed, is_stated, stated_type, undescribed
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog
from reshard.plan.fit import Fit, fit, read_alike
from reshard.plan.own_axes import over_own_axes
from reshard.plan.place import Placement, place
from reshard.plan.rename import rename
from reshard.plan.stored_names import StoredNames
from reshard.plan.ties import tie_groups

_NAMES = "hf"
"""What the layouts in transformers' names are called; models of many types share such names."""


@dataclass(frozen=True, slots=True)
class Modelled:
    """A checkpoint whose model is known.

    Args:  catalog: with what its names told added to its configuration.
           layout: of the model, which it is in.  family: with the other layouts of the model.
    """

    catalog: Catalog
    layout: Layout
    family: Family


def find_model(
    catalog: Catalog,
    *,
    model: str | None = None,
    extra: Sequence[Family] = (),
    settings: Mapping[str, float | None] | None = None,
) -> Modelled:
    """The one layout of all that are known that a checkpoint is in.

    Its names must follow the layout's rules, and its configuration must not say that it is of
    another model (`layout ... when ...`), unless the user does.

    Args:  model: only layouts of this model.  extra: the user's families, beside those that ship.
    Raises: ReshardError[unknown-model-name | no-layout-fits | several-layouts-fit].
    """
    families = (*extra, *shipped())
    by_name = {family.name: family for family in families}
    if model is not None and model not in by_name:
        raise layout_error(
            "unknown-model-name",
            f"there is no model `{model}`",
            notes=[f"known are {listed(by_name)}"],
            helps=["describe it in a UCL file, and give it with `--layout`"],
        )
    searched = [item for item in families if model is None or item.name == model]
    kind = stated_type(catalog) if model is None else None
    unsaid = undescribed(catalog)
    if unsaid:
        raise indescribable(catalog, unsaid)
    if kind is not None:
        searched = [item for item in searched if kind in item.types() or not item.types()]
    problems: list[tuple[int, ReshardError]] = []
    for candidate in candidates(catalog, searched):
        try:
            return _fitted(candidate, by_name, searched, model, kind, settings or {})
        except ReshardError as error:
            if any(item.code not in UNFITTING for item in error.diagnostics):
                raise
            near = nearest(candidate, searched, StoredNames.of(candidate))
            distance = sys.maxsize if near is None else near.distance
            problems.append((distance, error))
    raise min(problems, key=lambda pair: pair[0])[1]


def find_own(
    catalog: Catalog, families: Sequence[Family], settings: Mapping[str, float | None] | None
) -> Modelled:
    """The one layout of a user's families that a checkpoint is in.

    Raises: ReshardError[no-layout-fits | several-layouts-fit].
    """
    by_name = {family.name: family for family in families}
    return _fitted(catalog, by_name, families, next(iter(by_name)), None, settings or {})


def fitted(
    catalog: Catalog, layout: Layout, settings: Mapping[str, float | None] | None
) -> tuple[Catalog, Layout]:
    """A checkpoint with the facts that its names tell under a layout, and the layout with the
    uneven cuts that the checkpoint states; both as they are where the names do not follow it.
    """
    result = fit(_as_stated(layout, catalog.layout), catalog, settings or {})
    if result is None:
        return catalog, layout
    config = {**(catalog.config or {}), **result.facts}
    return replace(catalog, config=config), result.layout


def _fitted(
    catalog: Catalog,
    by_name: Mapping[str, Family],
    searched: Sequence[Family],
    model: str | None,
    kind: str | None,
    settings: Mapping[str, float | None],
) -> Modelled:
    """The one layout that a catalog is in.

    Raises: ReshardError[no-layout-fits | several-layouts-fit].
    """
    names = StoredNames.of(catalog)
    forms = _name_forms(catalog, names)
    fitting = [
        Found(family, item)
        for family in searched
        for layout in (family.layout(x) for x in family.layout_names if family.may_have(x, forms))
        if (item := fit(_as_stated(layout, catalog.layout), catalog, settings, names)) is not None
    ]
    fits = [item for item in fitting if item.fit.agrees is not False]
    if not fits and model is not None:
        fits = fitting  # the user knows better
    if not fits:
        if kind is not None and not any(kind in item.types() for item in by_name.values()):
            raise unknown_type(catalog, kind, by_name)
        raise nothing_fits(catalog, by_name, searched, fitting, names)
    if any(item.fit.is_used for item in fits):
        fits = [item for item in fits if item.fit.is_used]  # no experts, no model with experts
    agreeing = [item for item in fits if item.fit.agrees]
    exact = [item for item in fits if item.fit.layout.name == catalog.layout.name]
    kindred = [item for item in fits if item.fit.layout.name.startswith(catalog.layout.name)]
    for closer in (agreeing, exact, kindred):
        if len(fits) > 1 and len(closer) == 1:
            fits = closer  # the checkpoint says it, or the reader knows which form it met
    if len(fits) > 1:
        fits = [item for item in fits if _has_shapes(item.fit, catalog, settings)] or fits
    first = fits[0].fit
    if not all(read_alike(first, item.fit, catalog, names) for item in fits[1:]):
        raise several_fit(catalog, fits)
    item = fits[0].fit
    config = {**(catalog.config or {}), **item.facts}
    oddities = catalog.oddities
    is_named = item.layout.name == _NAMES or item.layout.name.startswith(f"{_NAMES}_")
    if is_named and kind is None and model is None and fits[0].family in shipped():
        oddities = (*oddities, guessed(fits[0].family.name))
    catalog = replace(catalog, config=config, oddities=oddities)
    return Modelled(catalog, item.layout, fits[0].family)


def _name_forms(catalog: Catalog, stored: StoredNames) -> frozenset[str]:
    """The forms of the stored names that a layout must have: of names that are tied, one may do."""
    tied = {name for group in tie_groups(catalog.aliases) for name in group}
    return frozenset(name_form(name) for name in stored.kinds if name not in tied)


def _has_shapes(item: Fit, catalog: Catalog, settings: Mapping[str, float | None]) -> bool:
    """Whether tensors may have the shapes that a layout gives them, and not only the names.

    Sizes that nothing tells contradict no shape: such a layout stays one of those that fit.
    """
    config = {**(catalog.config or {}), **item.facts}
    try:
        bind(item.layout, replace(catalog, config=config), settings=settings)
    except ReshardError as failure:
        return all(problem.code == "unsolvable-size" for problem in failure.diagnostics)
    return True


def _as_stated(layout: Layout, own: Layout) -> Layout:
    """A layout of the model, with the uneven cuts that the checkpoint's own layout states."""
    places = dict(layout.places)
    for axis, split in own.places.items():
        split_of = places.get(axis)
        if split.rule == "sizes" and split_of is not None and split_of.rule == "even":
            places[axis] = replace(split_of, rule="sizes", sizes=split.sizes)
    return over_own_axes(replace(layout, places=places), own)


def rename_to(
    arrangement: Arrangement,
    family: Family,
    names: str,
    mesh: Mapping[str, int],
    *,
    instead: str = "",
    settings: Mapping[str, float | None] | None = None,
    places: Mapping[str, Placement] | None = None,
) -> Arrangement:
    """The same numbers in the names of another layout.

    Args:  names: a layout of the family; or the beginning of one, `hf` for `hf_gpt2`: that of the
                  source, else the first one that has a place for all that is stored. Where the
                  one of that name is of other models, those whose names begin so are tried too.
           instead: a layout that is taken where that one stacks layers which are of two kinds.
           mesh: of the target.  places: by axis, how it lies there, if not as the layout says.
    Raises: ReshardError[unknown-names], and what `rename` raises.
    """
    exact = [name for name in family.layout_names if name == names]
    near = [name for name in family.layout_names if name.startswith(f"{names}_")]
    if not exact and not near:
        raise layout_error(
            "unknown-names",
            f"model `{family.name}` has no layout `{names}`",
            notes=[f"it has {listed(family.layout_names)}"],
        )
    present = arrangement.layout.name
    if not exact and present in near:
        exact = [present]  # what is named so already keeps its names
    preferred = [name for name in (*exact, *near) if is_stated(arrangement.catalog, family, name)]
    problems: list[ReshardError] = []
    for name in preferred or (*exact, *near):
        try:
            layout = place(family.layout(name), places or {})
            return rename(arrangement, layout, mesh, settings=settings)
        except ReshardError as error:
            problems.append(error)
            if name in exact and _is_stacked(error):
                break  # it is of this model; only the way it writes layers does not serve
    if _is_stacked(problems[0]) and instead in family.layout_names:
        return rename_to(arrangement, family, instead, mesh, settings=settings, places=places)
    raise problems[0]


def _is_stacked(error: ReshardError) -> bool:
    """Whether a layout would stack layers that are of two kinds."""
    return all(item.code == "indexed-atom" for item in error.diagnostics)


def candidates(catalog: Catalog, families: Sequence[Family]) -> Iterator[Catalog]:
    """The checkpoint as it is; then without what wrappers put into its names; without what is no
    parameter; with the prefix of the whole model; and with a tied head as a copy of the embedding.

    Each goes on from the one before it.
    """
    yield catalog
    for change in (unwrapped, without_buffers):
        changed = change(catalog)
        if changed is not None:
            catalog = changed
            yield catalog
    forms = [catalog]
    for form in with_prefixes(catalog, _stated(catalog, families)):
        yield form
        forms.append(form)
    for form in forms:
        yield from with_tied_head(form, _stated(form, families))


def _stated(catalog: Catalog, families: Sequence[Family]) -> list[Layout]:
    return [layout for _, layout in stated_layouts(catalog, families)]
