"""What a checkpoint can be read as, where a layout of its model need not have every stored name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reshard.api.unfitting import stated_layouts
from reshard.api.unnamed import unwrapped, with_prefixes, with_tied_head, without_buffers
from reshard.language.layout import Layout
from reshard.language.library import Family
from reshard.plan.catalog import Catalog


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
