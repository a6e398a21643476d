"""The model that a checkpoint is of, and the names of another of its layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reshard.errors import ReshardError, layout_error
from reshard.language import load_layout
from reshard.language.layout import Layout
from reshard.language.library import Family, all_layouts, shipped
from reshard.plan.arrangement import Arrangement
from reshard.plan.catalog import Catalog
from reshard.plan.fit import fit
from reshard.plan.place import Placement, place
from reshard.plan.rename import rename


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
    settings: Mapping[str, int] | None = None,
) -> Modelled:
    """The one layout of all that are known that a checkpoint is in.

    Args:  model: only layouts of this model.  extra: the user's families, beside those that ship.
    Raises: ReshardError[unknown-model-name | no-layout-fits | several-layouts-fit].
    """
    families = (*extra, *shipped())
    known = {family.name: family for family in families}
    if model is not None and model not in known:
        raise layout_error(
            "unknown-model-name",
            f"there is no model `{model}`",
            notes=[f"known are {_listed(known)}"],
            helps=["describe it in a UCL file, and give that with `--layout`"],
        )
    found = []
    for family, name in all_layouts(families):
        if model is None or family.name == model:
            item = fit(family.layout(name), catalog, settings or {})
            if item is not None:
                found.append((family, item))
    if not found:
        raise layout_error(
            "no-layout-fits",
            f"the names of this {catalog.format} checkpoint are not those of a known model",
            notes=[_example(catalog), f"known models: {_listed(known)}"],
            helps=["describe the model in a UCL file, and give that with `--layout FILE#NAME`"],
        )
    exact = [item for item in found if item[1].layout.name == catalog.layout_name]
    kindred = [item for item in found if item[1].layout.name.startswith(catalog.layout_name)]
    for closer in (exact, kindred):
        if len(found) > 1 and len(closer) == 1:
            found = closer  # the reader knows which of its layouts it met
    if len(found) > 1:
        listed = ", ".join(f"`{family.name}.{item.layout.name}`" for family, item in found)
        raise layout_error(
            "several-layouts-fit",
            f"the names of this {catalog.format} checkpoint are those of several models",
            notes=[f"these fit: {listed}"],
            helps=["choose one with `--model NAME`"],
        )
    family, item = found[0]
    config = {**(catalog.config or {}), **item.facts}
    return Modelled(replace(catalog, config=config), _as_stated(item.layout, catalog), family)


def _as_stated(layout: Layout, catalog: Catalog) -> Layout:
    """A layout of the model, with the uneven cuts that the checkpoint itself states."""
    own = load_layout(catalog.layout, f"{catalog.format} layout", catalog.layout_name)
    places = dict(layout.places)
    for axis, split in own.places.items():
        known = places.get(axis)
        if split.rule == "sizes" and known is not None and known.rule == "even":
            places[axis] = replace(known, rule="sizes", sizes=split.sizes)
    return replace(layout, places=places)


def rename_to(
    arrangement: Arrangement,
    family: Family,
    names: str,
    mesh: Mapping[str, int],
    *,
    settings: Mapping[str, int] | None = None,
    places: Mapping[str, Placement] | None = None,
) -> Arrangement:
    """The same numbers in the names of another layout.

    Args:  names: a layout of the family; or the beginning of one, `hf` for `hf_gpt2`, where only
                  one that begins so has a place for all that is stored.
           mesh: of the target.  places: by axis, how it lies there, if not as the layout says.
    Raises: ReshardError[unknown-names], and what `rename` raises.
    """
    exact = [name for name in family.layout_names if name == names]
    near = [name for name in family.layout_names if name.startswith(f"{names}_")]
    if not exact and not near:
        raise layout_error(
            "unknown-names",
            f"model `{family.name}` has no layout `{names}`",
            notes=[f"it has {_listed(family.layout_names)}"],
        )
    problems: list[ReshardError] = []
    for name in exact or near:
        try:
            layout = place(family.layout(name), places or {})
            return rename(arrangement, layout, mesh, settings=settings)
        except ReshardError as error:
            problems.append(error)
    raise problems[0]


def _example(catalog: Catalog) -> str:
    names = [tensor.name for tensor in catalog.tensors if tensor.state != "extra"]
    return f"it stores `{names[0]}`" if names else "it stores no tensors"


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
