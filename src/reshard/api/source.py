"""From a path to a source that is understood: recognized, catalogued, bound, and proved whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from reshard import formats
from reshard.api.checking import check_source
from reshard.api.cut_rows import CutRows, cut_rows
from reshard.api.given_config import with_given_config
from reshard.api.request import PathLike, Request
from reshard.api.user_layouts import alternatives, one_layout, read_layouts
from reshard.errors import Diagnostic, ReshardError, target_error
from reshard.language import Document, format_document
from reshard.language.layout import Layout
from reshard.language.library import Family, declared_families, shipped
from reshard.models.facts import check_facts
from reshard.models.find import Modelled, find_model, find_own, fitted, rename_to
from reshard.models.name_forms import without_left_out, without_named
from reshard.models.nearest import UNFITTING
from reshard.models.source_names import (
    SOURCE,
    Keep,
    Named,
    are_own_names,
    cannot_keep,
    is_named,
    kept_beside,
)
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog
from reshard.plan.consolidate import consolidated
from reshard.plan.place import Placement, parse_placement, place
from reshard.plan.prove import Proof, prove_sources
from reshard.plan.rename import rename, renamed_catalog
from reshard.records import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Naming:
    """How a source is to be named for a target; without one it keeps its names.

    Args:  names: read it through its model, and call its tensors as this layout of it does;
                  `source` for the names that they have.
           instead: the layout of it that does so where `names` cannot stack its layers.
           into: read it through its model, and call its tensors as this layout of it does.
           mesh: on which they will lie; the rules of the layout may ask for it.
           facts: what the target says of the model.
           keep: whether it keeps its own names where no layout of a model fits: `established`
                 where they are shown to be the names that are asked for.
           alike: layouts of sources that have these names.
    """

    names: str | None = None
    instead: str = ""
    into: Layout | None = None
    mesh: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, float | None] = field(default_factory=dict)
    keep: Keep = "never"
    alike: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source and the proof that all of it is there.

    Args:  own: the user's layouts through which it was read; None without them.
           family: the layouts of its model, where that is known.
           named: what gave the names of the tensors: a layout of the model; the configuration that
                  goes with the source's own names; or the source, and nothing is known of them.
           cut: rows that the user's settings take for padding.
    """

    path: Path
    catalog: Catalog
    arrangement: Arrangement
    proof: Proof
    own: Document | None = None
    family: Family | None = None
    named: Named = "source"
    cut: CutRows | None = None

    @property
    def layout_text(self) -> str:
        """UCL through which it was read: the user's, that of its model, or its own."""
        if self.own is not None:
            return self.own.source.text
        if self.family is not None:
            return format_document(self.family.document)
        return self.catalog.layout.text


def open_source(
    path: PathLike, request: Request | None = None, naming: Naming | None = None
) -> OpenedSource:
    """A source, read through its own layout, the user's, or that of its model.

    Args:  naming: what a target asks of its names; what the user asks if not given.
    Raises: source-missing, unknown-source, layout-missing, and everything that the format, the
            language, and the coverage proof find wrong.
    """
    request = request or Request()
    naming = naming or Naming(request.names)
    settings = {**naming.facts, **request.settings}
    names, into, model = naming.names, naming.into, request.model
    folder = Path(path)
    placements = {item.axis: item for item in map(parse_placement, request.places)}
    # The user's layout first: a slip in it should not wait for a big checkpoint to be read.
    file = request.layout_file
    own = None if file is None else read_layouts(file)
    several = () if own is None or request.layout_name else alternatives(own, model)
    chosen = None
    if own is not None and not several:
        chosen = one_layout(own, request.layout_name)
    if chosen is not None and own is not None and chosen.files:
        catalog = formats.read_described(chosen, folder, step=request.step)
    else:
        catalog = formats.read(
            formats.recognize(folder),
            folder,
            step=request.step,
            strict_layout=chosen is None and not several,
        )
    if request.check:
        checked = check_source(catalog, request.on_progress)
        catalog = replace(catalog, oddities=(*catalog.oddities, *checked))
    if request.config is not None:
        catalog = with_given_config(catalog, Path(request.config))
    catalog = without_named(catalog, request.leave_out)
    family, plain_catalog = None, catalog
    named: Named = "source"
    if names == SOURCE:
        names = None
    if several:
        fitting = find_own(catalog, several, settings)
        catalog, chosen, family = fitting.catalog, fitting.layout, fitting.family
        named = "layout"
    elif chosen is not None and chosen.model is not None and own is not None:
        found = (*declared_families(own), *shipped())
        family = next(item for item in found if item.name == chosen.model.name)
        named = "layout"
        catalog, chosen = fitted(catalog, chosen, settings)
    elif model is not None or names is not None or into is not None:
        extra = () if own is None else declared_families(own)
        may_keep = naming.keep if model is None and own is None else "never"
        if may_keep != "never" and catalog.layout.name in naming.alike:
            may_keep = "always"
        modelled = _modelled(catalog, model, extra, settings, names, may_keep)
        if modelled is not None:
            catalog, chosen, family = modelled.catalog, modelled.layout, modelled.family
            own = None
            named = "layout"
        elif naming.keep == "established":
            named = "config"
            kept = kept_beside(catalog, shipped())
            catalog = replace(catalog, oddities=(*catalog.oddities, *kept))
    if chosen is None:
        chosen = catalog.layout
    catalog = without_left_out(catalog, chosen)
    try:
        arrangement = bind(chosen, catalog, settings=settings)
    except ReshardError as error:
        may_keep = naming.keep if model is None and file is None else "never"
        joined = _joined(chosen, catalog, settings) if _is_cut_otherwise(error) else None
        if joined is not None:
            catalog, arrangement = joined.catalog, joined
        elif may_keep == "never" or not is_named(chosen, names) or not _are_unsolved(error):
            raise
        else:
            # Its names are those that are wanted, so that what they mean need not be known.
            catalog = _without_model(plain_catalog, chosen, error)
            chosen, family, own = catalog.layout, None, None
            arrangement = bind(chosen, catalog, settings=settings)
    proof = prove_sources(arrangement)
    cut = cut_rows(catalog, arrangement, request.settings)
    if family is not None:
        if into is None and names is None and chosen.name not in family.layout_names:
            into = chosen  # a layout of the user's own of a model that ships
        if into is not None:
            wanted = place(into, placements)
            renamed = rename(arrangement, wanted, naming.mesh, settings=settings)
        else:
            renamed = rename_to(
                arrangement,
                family,
                arrangement.layout.name if names is None else names,
                naming.mesh,
                instead=naming.instead,
                settings=settings,
                places=placements,
            )
        catalog, warnings = check_facts(arrangement, renamed, family)
        catalog = renamed_catalog(replace(arrangement, catalog=catalog), renamed)
        catalog = replace(catalog, oddities=(*catalog.oddities, *warnings))
        arrangement = replace(renamed, catalog=catalog)
    elif placements:
        raise _not_placed(placements)
    return OpenedSource(folder, catalog, arrangement, proof, own, family, named, cut)


def _modelled(
    catalog: Catalog,
    model: str | None,
    extra: Sequence[Family],
    settings: Mapping[str, float | None] | None,
    names: str | None,
    keep: Keep,
) -> Modelled | None:
    """The model of a source; None where none is known and its own names will do.

    Raises: what `find_model` raises.
    """
    try:
        return find_model(catalog, model=model, extra=extra, settings=settings)
    except ReshardError as error:
        if keep == "never" or any(item.code not in UNFITTING for item in error.diagnostics):
            raise
        if keep == "always" or are_own_names(catalog, names, shipped()):
            return None
        raise cannot_keep(error, names or "", catalog) from None


def _are_unsolved(error: ReshardError) -> bool:
    return all(item.code == "unsolvable-size" for item in error.diagnostics)


_CUT_OTHERWISE = frozenset(("uneven-split", "shape-mismatch", "unsolvable-size", "missing-block"))


def _is_cut_otherwise(error: ReshardError) -> bool:
    """Whether the layout of a model may not say how a checkpoint is cut over its ranks."""
    return {item.code for item in error.diagnostics} <= _CUT_OTHERWISE


def _joined(
    chosen: Layout, catalog: Catalog, settings: Mapping[str, float | None] | None
) -> Arrangement | None:
    """The whole tensors that the checkpoint's own layout joins, read through that of the model;
    None where that does not say more.
    """
    if chosen.model is None or not catalog.mesh:
        return None
    own = catalog.layout
    if own.model is not None:
        return None
    try:
        arrangement = bind(own, catalog)
        prove_sources(arrangement)
        whole = consolidated(arrangement)
        return None if whole is None else bind(chosen, whole, settings=settings)
    except ReshardError:
        return None  # what was wrong at first is told


def _without_model(catalog: Catalog, layout: Layout, error: ReshardError) -> Catalog:
    """The catalog, with what its model lacks as an oddity."""
    model = "" if layout.model is None else layout.model.name
    warning = Diagnostic(
        "unsolved-model",
        f"this looks like model `{model}`, but not all of its sizes can be inferred",
        level="warning",
        notes=error.diagnostics[0].notes[:2],
        helps=("state them, e.g. `--set num_attention_heads=32 --set num_key_value_heads=8`",),
    )
    return replace(catalog, oddities=(*catalog.oddities, warning))


def _not_placed(placements: Mapping[str, Placement]) -> ReshardError:
    return target_error(
        "unused-setting",
        f"`--place {next(iter(placements.values()))}` has no effect here",
        notes=["it distributes an axis of a model over the ranks of the target"],
        helps=["name the target's layout of the model with `--names`, or omit this option"],
    )
