"""What `--to` says, with the layout of a target that a layout describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reshard import formats
from reshard.api.user_layouts import one_layout, read_layouts
from reshard.errors import target_error
from reshard.language.layout import Layout
from reshard.plan.target import DESCRIBED, Target, parse_target


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
    alike = {name for name, other in shipped.items() if other.names == layout.names}
    return frozenset({layout.name, *alike})
