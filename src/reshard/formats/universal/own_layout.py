"""The layout that a universal checkpoint carries, such that it reads as what it is."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.universal import NAME
from reshard.formats.universal.manifest import TensorEntry, local_tensors
from reshard.formats.universal.whole_layout import whole_layout
from reshard.language import compile_layout, format_document
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog
from reshard.run.run import Run
from reshard.run.states import EXTRA


def own_layout(
    arrangement: Arrangement, wholes: Sequence[Whole], entries: Sequence[TensorEntry]
) -> tuple[str, str, tuple[Diagnostic, ...]]:
    """A layout through which the written tensors are read as the same atoms.

    It is the source's, over whole tensors.  Where that does not read them back the same, it is one
    rule for all names, which says nothing of how they were cut.

    Returns: (its name, UCL text, warnings).
    """
    names = {item.name for item in wholes if item.state != EXTRA}
    name = arrangement.layout.name
    if names:
        document = whole_layout(arrangement, names)
        if _is_of_whole_tensors(arrangement.layout):
            return name, format_document(document), ()
        try:
            why = _difference(arrangement, wholes, entries, compile_layout(document, name))
        except ReshardError as error:
            why = error.diagnostics[0].headline
        if not why:
            return name, format_document(document), ()
    rule = "[...]" if names else "[...] optional"
    plain = f'layout {NAME} {{\n    "**" = {rule}\n}}\n'
    if not names:
        return NAME, plain, ()
    warning = Diagnostic(
        "plain-layout",
        f"`layout.ucl` will not say how layout `{name}` cuts its tensors",
        level="warning",
        notes=(f"read through that layout, the whole tensors would be others: {why}",),
        helps=("to cut them again, give a layout with `--layout`",),
    )
    return NAME, plain, (warning,)


def _is_of_whole_tensors(layout: Layout) -> bool:
    """Whether a layout is one rule, by which each tensor is an atom of its own, as it is stored:
    that makes of a whole tensor what it made of the parts.
    """
    if layout.model is not None or layout.places or len(layout.rules) != 1:
        return False
    (rule,) = layout.rules
    plain = (rule.atom, rule.dims, rule.averaged_over, rule.stage, rule.when, rule.only)
    return rule.pattern.text == "**" and rule.rest and not any(plain)


def _difference(
    arrangement: Arrangement,
    wholes: Sequence[Whole],
    entries: Sequence[TensorEntry],
    layout: Layout,
) -> str:
    """Why the written tensors, read through a layout, are not what they were; empty if they are.

    States of one shape are read alike, so one for each shape of a parameter is enough.
    """
    by_kind = {_kind(item): item for item in reversed(entries) if item.state != EXTRA}
    config = arrangement.catalog.config
    tensors = local_tensors(by_kind.values())
    catalog = Catalog(NAME, "", "", {}, tensors, layout, Run(), config=config)
    reread = bind(layout, catalog)
    segments = {_kind(item): item.segments for item in reread.wholes}
    for item in wholes:
        if item.state != EXTRA and segments.get(_kind(item)) != item.segments:
            return f"`{item.name}` ({item.state}) differs"
    return ""


def _kind(item: Whole | TensorEntry) -> tuple[str, tuple[int, ...], str]:
    """What states are alike by; a number may be one for the parameter, or the parameter itself."""
    return item.name, item.shape, "" if item.shape else item.state
