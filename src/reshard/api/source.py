"""From a path to a source that is understood: recognized, catalogued, bound, and proved whole."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from reshard import formats
from reshard.api.cut_rows import CutRows, cut_rows
from reshard.api.given_config import with_given_config
from reshard.api.request import PathLike, Request
from reshard.api.user_layouts import UserLayouts
from reshard.engine.progress import Meter, OnProgress
from reshard.errors import Diagnostic, Exit, ReshardError, target_error
from reshard.language import Document, format_document
from reshard.language.layout import Layout
from reshard.language.library import Family, declared_families, shipped
from reshard.models.facts import check_facts
from reshard.models.find import Modelled, find_model, find_own, fitted, rename_to
from reshard.models.name_forms import without_left_out, without_named
from reshard.models.nearest import UNFITTING, lacking_scales
from reshard.models.source_names import (
    SOURCE,
    Keep,
    Named,
    are_own_names,
    cannot_keep,
    is_named,
    kept_beside,
    names_beside,
)
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog
from reshard.plan.collector import uncollected
from reshard.plan.consolidate import consolidated
from reshard.plan.lacking import lacking_states
from reshard.plan.place import Placement, parse_placement, place
from reshard.plan.prove import Proof, prove_sources
from reshard.plan.rename import rename, renamed_catalog
from reshard.plan.settings import unused_settings
from reshard.store.source_files import SourceFiles

Settings = Mapping[str, float | None]
"""Sizes and facts of a model, by name."""


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
    facts: Settings = field(default_factory=dict)
    keep: Keep = "never"
    alike: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source and the proof that all of it is there.

    Args:  document: the user's layouts through which it was read; None without them.
           family: the layouts of its model, where that is known.
           named: what gave the names of the tensors: a layout of the model; the configuration that
                  goes with the source's own names; or the source, and nothing is known of them.
           cut: rows that the user's settings take for padding.
    """

    path: Path
    arrangement: Arrangement
    proof: Proof
    document: Document | None = None
    family: Family | None = None
    named: Named = "source"
    cut: CutRows | None = None

    @property
    def catalog(self) -> Catalog:
        """What it stores, and where."""
        return self.arrangement.catalog

    @property
    def layout_text(self) -> str:
        """UCL through which it was read: the user's, that of its model, or its own."""
        if self.document is not None:
            return self.document.source.text
        if self.family is not None:
            return format_document(self.family.document)
        return self.catalog.layout.text

    def files(self) -> SourceFiles:
        """Its files, open for reading; close them."""
        return SourceFiles(self.catalog.root, self.catalog.files)

    def with_warnings(self, warnings: Iterable[Diagnostic]) -> OpenedSource:
        """The source with further warnings of what is unusual."""
        return self.with_catalog(self.catalog.with_warnings(warnings))

    def with_catalog(self, catalog: Catalog) -> OpenedSource:
        """The source with another catalog of the same tensors."""
        return replace(self, arrangement=replace(self.arrangement, catalog=catalog))


@dataclass(frozen=True, slots=True)
class _Reading:
    """Through which layout a catalog is read; the other fields are those of `OpenedSource`."""

    catalog: Catalog
    layout: Layout
    document: Document | None = None
    family: Family | None = None
    named: Named = "source"


@uncollected
def open_source(
    path: PathLike, request: Request | None = None, naming: Naming | None = None
) -> OpenedSource:
    """A source, read through its own layout, the user's, or that of its model.

    Args:  naming: what a target asks of its names; what the user asks if not given.
    Raises: source-missing, unknown-source, layout-missing, and everything that the format, the
            language, and the coverage proof find wrong.
    """
    request = request or Request()
    is_for_target = naming is not None
    naming = naming or Naming(request.names)
    if naming.names == SOURCE:
        naming = replace(naming, names=None)
    if request.model is not None or request.layout is not None:
        naming = replace(naming, keep="never")
    settings = {**naming.facts, **request.settings}
    placements = {item.axis: item for item in map(parse_placement, request.places)}
    # The user's layout first: a slip in it should not wait for a big checkpoint to be read.
    user = UserLayouts.of(request)
    catalog = _catalog(Path(path), request, user)
    reading = _reading(catalog, user, request.model, naming, settings)
    reading, arrangement = _bound(reading, catalog, naming, settings)
    proof = prove_sources(arrangement)
    lacking = lacking_states(arrangement.wholes, reading.catalog.training.param_groups)
    scales = lacking_scales(reading.catalog)
    catalog = arrangement.catalog.with_warnings([*lacking, *scales])
    arrangement = replace(arrangement, catalog=catalog)
    cut = cut_rows(reading.catalog, arrangement, request.settings)
    if reading.family is not None:
        arrangement = _renamed(arrangement, reading.family, naming, settings, placements)
    elif placements:
        raise _not_placed(placements)
    source = OpenedSource(
        Path(path), arrangement, proof, reading.document, reading.family, reading.named, cut
    )
    if not is_for_target:
        return source
    layouts = (reading.layout, arrangement.layout)
    of_model = reading.family is not None or reading.document is not None
    return source.with_warnings(unused_settings(request.settings, layouts, of_model=of_model))


def _catalog(path: Path, request: Request, user: UserLayouts) -> Catalog:
    """What a folder stores, held to its own digests and with the user's configuration if asked."""
    if user.layout is not None and user.layout.files:
        catalog = formats.read_described(user.layout, path, step=request.step)
    else:
        name = formats.recognize(path)
        has_layout = user.document is not None
        catalog = formats.read(
            name,
            path,
            step=request.step,
            strict_layout=not has_layout,
            excluded=request.leave_out,
        )
    if request.check:
        catalog = catalog.with_warnings(_checked(catalog, request.on_progress))
    if request.config is not None:
        catalog = with_given_config(catalog, Path(request.config))
    return without_named(catalog, request.leave_out)


def _checked(catalog: Catalog, on_progress: OnProgress | None) -> tuple[Diagnostic, ...]:
    """Read all bytes of a source, and compare them with what was noted when they were written.

    Universal checkpoints have a digest of every tensor and file, torch files a crc32 of each
    member.

    Returns: warnings: where some of its bytes have neither, and what else was noticed.
    Raises: ReshardError[digest-mismatch | crc-mismatch | ...], everything that is not as written.
    """
    meter = Meter(on_progress, sum(file.nbytes for file in catalog.files), "check")
    result = formats.check_bytes(catalog.format, catalog, meter.add)
    if result.faults:
        raise ReshardError(result.faults, Exit.SOURCE)
    if not result.unchecked:
        return result.warnings
    title = formats.SOURCES[catalog.format].title
    number = len(result.unchecked)
    if number == result.holding:
        headline = f"a {title} has no checksums of its tensors, so they cannot be checked"
    else:
        headline = f"{number} of {result.holding} files of a {title} have no checksums"
    return (
        *result.warnings,
        Diagnostic(
            "no-checksums",
            headline,
            "warning",
            notes=(
                *([] if number == result.holding else [f"e.g. `{result.unchecked[0]}`"]),
                "only this is checked: each file is complete, and copies of a tensor agree",
            ),
            helps=("compare it with another copy of it: `reshard diff A B`",),
        ),
    )


def _reading(
    catalog: Catalog, user: UserLayouts, model: str | None, naming: Naming, settings: Settings
) -> _Reading:
    """Through which layout a catalog is read.

    Raises: ReshardError where it is to be read through its model, and that is not found.
    """
    document, layout = user.document, user.layout
    if user.families:
        own = find_own(catalog, user.families, settings)
        return _Reading(own.catalog, own.layout, document, own.family, "layout")
    if document is not None and layout is not None and layout.model is not None:
        families = (*declared_families(document), *shipped())
        family = next(item for item in families if item.name == layout.model.name)
        return _Reading(*fitted(catalog, layout, settings), document, family, "layout")
    if model is None and naming.names is None and naming.into is None:
        return _Reading(catalog, layout or catalog.layout, document)
    modelled = _modelled(catalog, model, document, naming, settings)
    if modelled is not None:
        return _Reading(modelled.catalog, modelled.layout, None, modelled.family, "layout")
    if naming.keep != "established":
        return _Reading(catalog, catalog.layout)
    _prove_others(catalog, settings)
    catalog = catalog.with_warnings(kept_beside(catalog, shipped()))
    return _Reading(catalog, catalog.layout, named="config")


def _prove_others(catalog: Catalog, settings: Settings) -> None:
    """Prove that a model is whole which has tensors beside it that its layout does not name.

    Raises: what `bind` and `prove_sources` raise.
    """
    _, beside = names_beside(catalog, shipped())
    if not beside:
        return
    others = tuple(tensor for tensor in catalog.tensors if tensor.name not in beside)
    try:
        modelled = find_model(replace(catalog, tensors=others), settings=settings)
    except ReshardError:
        return  # what it looks like is not known
    try:
        arrangement = bind(modelled.layout, modelled.catalog, settings=settings)
    except ReshardError as error:
        if all(item.code == "unsolvable-size" for item in error.diagnostics):
            return
        raise
    prove_sources(arrangement)


def _modelled(
    catalog: Catalog,
    model: str | None,
    document: Document | None,
    naming: Naming,
    settings: Settings,
) -> Modelled | None:
    """The model of a source; None where none is known and its own names will do.

    Raises: what `find_model` raises.
    """
    extra = () if document is None else declared_families(document)
    try:
        return find_model(catalog, model=model, extra=extra, settings=settings)
    except ReshardError as error:
        if naming.keep == "never" or any(item.code not in UNFITTING for item in error.diagnostics):
            raise
        if naming.keep == "always" or catalog.layout.name in naming.alike:
            return None
        if are_own_names(catalog, naming.names, shipped()):
            return None
        raise cannot_keep(error, naming.names or "", catalog) from None


def _bound(
    reading: _Reading, catalog: Catalog, naming: Naming, settings: Settings
) -> tuple[_Reading, Arrangement]:
    """The segments of each tensor, and how it was read in the end.

    Where the sizes of the model do not follow from the source, and its names are those that are
    asked for, what they mean need not be known: it is then read through its own layout.

    Args:  catalog: as it was before its model was found.
    Raises: what `bind` raises.
    """
    layout = reading.layout
    reading = replace(reading, catalog=without_left_out(reading.catalog, layout))
    try:
        return reading, bind(layout, reading.catalog, settings=settings)
    except ReshardError as error:
        arrangement = (
            _joined(layout, reading.catalog, settings) if _is_cut_otherwise(error) else None
        )
        if arrangement is not None:
            return replace(reading, catalog=arrangement.catalog), arrangement
        can_keep = naming.keep != "never" and is_named(layout, naming.names)
        if not can_keep or any(item.code != "unsolvable-size" for item in error.diagnostics):
            raise
        catalog = catalog.with_warnings([_unsolved(layout, error)])
        reading = _Reading(catalog, catalog.layout, named=reading.named)
        return reading, bind(catalog.layout, catalog, settings=settings)


_CUT_OTHERWISE = frozenset(("uneven-split", "shape-mismatch", "unsolvable-size", "missing-block"))


def _is_cut_otherwise(error: ReshardError) -> bool:
    """Whether the layout of a model may not say how a checkpoint is cut over its ranks."""
    return {item.code for item in error.diagnostics} <= _CUT_OTHERWISE


def _joined(layout: Layout, catalog: Catalog, settings: Settings) -> Arrangement | None:
    """The whole tensors that the checkpoint's own layout joins, read through that of the model;
    None where that does not say more.
    """
    if layout.model is None or not catalog.mesh or catalog.layout.model is not None:
        return None
    try:
        arrangement = bind(catalog.layout, catalog)
        prove_sources(arrangement)
        whole = consolidated(arrangement)
        return None if whole is None else bind(layout, whole, settings=settings)
    except ReshardError:
        return None  # the first error is the one that helps


def _unsolved(layout: Layout, error: ReshardError) -> Diagnostic:
    """The warning for a model whose sizes do not follow from the source."""
    model = "" if layout.model is None else layout.model.name
    return Diagnostic(
        "unsolved-model",
        f"this looks like model `{model}`, but not all of its sizes can be inferred",
        level="warning",
        notes=error.diagnostics[0].notes[:2],
        helps=("state them, e.g. `--set num_attention_heads=32 --set num_key_value_heads=8`",),
    )


def _renamed(
    arrangement: Arrangement,
    family: Family,
    naming: Naming,
    settings: Settings,
    placements: Mapping[str, Placement],
) -> Arrangement:
    """The same elements in the names that are asked for, on the target's mesh."""
    layout, into = arrangement.layout, naming.into
    if into is None and naming.names is None and layout.name not in family.layout_names:
        into = layout  # a layout of the user's own of a model that ships
    if into is not None:
        renamed = rename(arrangement, place(into, placements), naming.mesh, settings=settings)
    else:
        renamed = rename_to(
            arrangement,
            family,
            naming.names or layout.name,
            naming.mesh,
            instead=naming.instead,
            settings=settings,
            places=placements,
        )
    catalog, warnings = check_facts(arrangement, renamed, family)
    catalog = renamed_catalog(replace(arrangement, catalog=catalog), renamed)
    return replace(renamed, catalog=catalog.with_warnings(warnings))


def _not_placed(placements: Mapping[str, Placement]) -> ReshardError:
    return target_error(
        "unused-setting",
        f"`--place {next(iter(placements.values()))}` has no effect here",
        notes=["it distributes an axis of a model over the ranks of the target"],
        helps=["name the target's layout of the model with `--names`, or omit this option"],
    )
