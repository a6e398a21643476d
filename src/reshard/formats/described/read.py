"""Reads a folder through a layout that describes its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.described import NAME
from reshard.formats.described.boxes import COPY
from reshard.formats.described.facts import PARAM_GROUPS, read_config, read_facts
from reshard.formats.described.files import find_files
from reshard.formats.described.states import put_together
from reshard.formats.described.tree import Where, listed, show
from reshard.formats.described.walk import Walked, walk_files
from reshard.language.layout import Layout
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog


def read_described(
    layout: Layout, path: Path, *, step: str | None = None, name: str = NAME
) -> Catalog:
    """The catalog of a folder, or of one file.

    Args:  layout: with files.  name: of the format.
    Raises: ReshardError[source-missing | unknown-step | missing-file | missing-rank-file |
            missing-place | unnamed-tensor | share-mismatch | ambiguous-optimizer-ids | bad-fact |
            ranks-disagree], and what is wrong with a file.
    """
    if not path.exists():
        raise source_error("source-missing", f"there is no folder `{path}`")
    if step is not None:
        raise source_error(
            "unknown-step",
            f"{path} has no step `{step}`",
            notes=["a layout describes the files of one step"],
            helps=["give the folder of the step, and leave `--step` out"],
        )
    root, only = (path, None) if path.is_dir() else (path.parent, path.name)
    return read_folder(layout, root, only, name=name)[0]


def read_folder(
    layout: Layout, root: Path, only: str | None = None, *, name: str = NAME
) -> tuple[Catalog, Walked]:
    """The catalog of a folder, and what each statement names in it.

    Args:  only: the one file that is looked at.
    Raises: as `read_described`.
    """
    files = find_files(layout, root, only)
    walked = walk_files(layout, root, files)
    config = read_config(walked)
    states = put_together(layout, walked, files.mesh, config)
    training, extras, steps = read_facts(layout, root, walked, states, files.mesh)
    others = _other_optimizers(walked, states.frozen)
    # Where files say themselves which parts they hold, nothing lies at a coordinate.
    has_slices = any(x.role == "slices" for rule in layout.files for x in rule.entries)
    mesh = {} if has_slices else files.mesh
    catalog = Catalog(
        format=name,
        version="",
        root=str(root.absolute()),
        mesh={**mesh, **({COPY: states.copies} if states.copies > 1 else {})},
        tensors=(*states.tensors, *extras),
        layout=layout,
        training=training,
        config=config,
        aliases=states.aliases,
        names_of=layout.names or "",
        frozen=states.frozen,
        files=tuple(walked.files),
        left=(*walked.left, *states.left),
        oddities=(
            *(replace(item, level="warning") for item in states.withheld),
            *(() if states.withheld else states.assumed),
            *(others or steps),  # the steps of several optimizers may be counted together
        ),
        withheld=states.withheld,
    )
    return catalog, walked


def _other_optimizers(walked: Walked, frozen: Sequence[str]) -> list[Diagnostic]:
    """A warning where a file has a list of optimizers, and the layout reads one of them.

    Args:  frozen: names of parameters without states.
    """
    read: dict[str, set[Where]] = {}
    for leaf in walked.of("states", "run"):
        where = _of_list(leaf.where)
        if where and (leaf.entry.role == "states" or PARAM_GROUPS in leaf.entry.names):
            read.setdefault(leaf.file.path, set()).add(where)
    others: dict[str, dict[Where, None]] = {}
    for leaf in walked.of("keep"):
        where = _of_list(leaf.where)
        known = read.get(leaf.file.path, set())
        if where not in known and any(where[:-1] == one[:-1] for one in known):
            others.setdefault(leaf.file.path, {})[where] = None
    return [
        Diagnostic(
            code="other-optimizers",
            level="warning",
            headline=f"{file} has {len(found) + 1} optimizers, and the states of one are read",
            notes=(
                f"not read: {listed([f'`{show(where)}`' for where in found])}",
                "parameters that only the others train are taken to be frozen"
                + (f": {listed([f'`{name}`' for name in frozen])}" if frozen else ""),
                "a universal checkpoint keeps the others as they are; other targets lack them",
            ),
            helps=("go on training from the source; `--states weights` converts the weights",),
        )
        for file, found in others.items()
    ]


def _of_list(where: Where) -> Where:
    """The item of a list that a place lies in; nothing where it lies in none."""
    ends = [index for index, at in enumerate(where) if at.is_item]
    return where[: ends[0] + 1] if ends else ()


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a folder, or of a step of a run, through the description of ours that fits.

    Raises: what `find_place` and `read_described` raise.
    """
    from reshard.formats.described.places import find_place
    from reshard.formats.described.shipped import find_descriptions

    path = find_place(path, step)
    found = find_descriptions(path)
    *others, last = found
    for item in others:  # such as are cut in another way
        try:
            catalog = read_described(item, path)
            bind(item, catalog)
        except ReshardError:
            continue
        return catalog
    return read_described(last, path)
