"""Checks of what a layout says of files: places, their holes, and how ranks share states."""

from __future__ import annotations

from collections.abc import Iterator

from reshard.errors import ReshardError
from reshard.language import tree
from reshard.language.check_single import check_constant
from reshard.language.expression import names as names_in
from reshard.language.faults import near
from reshard.language.pattern import NamePattern
from reshard.language.place import (
    GROUP,
    HOLES,
    MODULE,
    NAME,
    NUMBER,
    PARAMETER,
    STATE,
    FileName,
    Hole,
    Place,
)
from reshard.language.scope import Scope

_WORDS = {
    tree.PartitionStatement: "partition",
    tree.TieStatement: "tie",
    tree.WrapperStatement: "wrapper",
    tree.NamesStatement: "names",
    tree.OrderStatement: "order",
}


def check_files(scope: Scope, block: tree.LayoutBlock) -> None:
    """Fault what is wrong with the files of a layout, and what nothing would obey."""
    files = [item for item in block.statements if isinstance(item, tree.FileStatement)]
    for item in block.statements:
        if isinstance(item, tree.LeaveStatement):
            try:
                NamePattern.parse(item.pattern.text, item.pattern.span)
            except ReshardError as error:
                scope.faults.take(error)
    if not files:
        _check_obeyed(scope, block)
        return
    for item in block.statements:
        if isinstance(item, tree.TieStatement):
            check_constant(scope.faults, item.when, "the condition of this tie", bool)
        elif isinstance(item, tree.OrderStatement):
            check_constant(scope.faults, item.when, "the condition of this order", bool)
    counts = any(entry.role in ("number", "named") for file in files for entry in file.statements)
    for file in files:
        names = [name for word in file.names if (name := _file_name(scope, word))]
        held = {hole.name for name in names for hole in name.pattern.holes if not hole.is_size}
        held |= {NAME} if {MODULE, PARAMETER} <= held else set()
        for name in names:
            for hole in name.pattern.holes:
                _check_hole(scope, hole, (NAME, STATE, MODULE, PARAMETER))
        for entry in file.statements:
            if entry.value is not None:
                for axis in names_in(entry.value):
                    scope.check_mesh_axis(axis, entry.value.span)
            for word in entry.places:
                place = _place(scope, word)
                if place is not None:
                    _check_place(scope, entry, place, word, held, counts=counts)
    _check_partitions(scope, block, files)


def _check_obeyed(scope: Scope, block: tree.LayoutBlock) -> None:
    """Fault lines that only readers and writers of described files look at; the writer of ranks'
    files obeys the order of a model's parameters.
    """
    is_cut = block.model and any(isinstance(x, tree.MeshStatement) for x in block.statements)
    for item in block.statements:
        if is_cut and isinstance(item, tree.OrderStatement):
            check_constant(scope.faults, item.when, "the condition of this order", bool)
            continue
        word = _WORDS.get(type(item))
        if word is not None:
            scope.faults.add(
                "not-obeyed",
                f"nothing obeys `{word}` in layout `{scope.name}`, which describes no files",
                item.span,
                "has no effect",
                notes=["checkpoints that describe themselves say this of themselves"],
                helps=['describe the files, `file "rank{tp}.pt" { ... }`, or remove the line'],
            )


def _file_name(scope: Scope, word: tree.Word) -> FileName | None:
    try:
        return FileName.parse(word.text, word.span)
    except ReshardError as error:
        scope.faults.take(error)
        return None


def _place(scope: Scope, word: tree.Word) -> Place | None:
    try:
        return Place.parse(word.text, word.span)
    except ReshardError as error:
        scope.faults.take(error)
        return None


def _check_hole(scope: Scope, hole: Hole, known: tuple[str, ...]) -> None:
    if hole.name in known and not hole.is_size:
        return
    if hole.name not in HOLES or hole.is_size:
        scope.check_mesh_axis(hole.name, hole.span)
        return
    scope.faults.add(
        "bad-place",
        f"`{{{hole.name}}}` cannot stand here",
        hole.span,
        "not here",
        notes=[f"a place like this takes {', '.join(f'`{{{name}}}`' for name in known)}"],
    )


_HOLES_OF = {
    "state": (NAME, NUMBER, GROUP),
    "states": (NAME, NUMBER, GROUP, STATE),
    "number": (GROUP,),
    "named": (GROUP, NUMBER),
    "order": (GROUP, NAME),
}


def _check_place(
    scope: Scope,
    entry: tree.EntryStatement,
    place: Place,
    word: tree.Word,
    of_file: set[str],
    *,
    counts: bool,
) -> None:
    for hole in place.holes:
        _check_hole(scope, hole, _HOLES_OF.get(entry.role, ()))
    held = of_file | {hole.name for hole in place.holes}
    if entry.role in ("state", "states") and not held & {NAME, NUMBER, GROUP}:
        scope.faults.add(
            "bad-place",
            f"`{entry.role}` does not say whose states lie at `{word.text}`",
            word.span,
            "of which parameter?",
            helps=["write `{name}` where the parameter's name stands, or `{number}`, or `{group}`"],
        )
    if entry.role == "states" and STATE not in held:
        scope.faults.add(
            "bad-place",
            f"`states` does not say which states lie at `{word.text}`",
            word.span,
            "which kind of state?",
            helps=["write `{state}` where its name stands, or name it: `state exp_avg at ...`"],
        )
    if entry.role == "slices" and NAME not in of_file:
        scope.faults.add(
            "bad-place",
            "`slices` stands in a file that is not of one parameter",
            word.span,
            "slices of which parameter?",
            helps=["write `{name}` in the name of the file, or `{module}` and `{parameter}`"],
        )
    if NUMBER in held and entry.role in ("state", "states") and not counts:
        scope.faults.add(
            "bad-place",
            "nothing says which parameter has which number",
            word.span,
            "numbered",
            helps=['add `number by "optimizer/param_groups[{group}]/params"`'],
        )


def _check_partitions(
    scope: Scope, block: tree.LayoutBlock, files: list[tree.FileStatement]
) -> None:
    """Fault states that no file has, and shares that lie in files of no such rank."""
    for item in block.statements:
        if not isinstance(item, tree.PartitionStatement):
            continue
        for word in item.states:
            homes = [(file, entry) for file, entry in _states(files) if _stores(entry, word.text)]
            named = {name.text for _, entry in _states(files) for name in entry.names}
            if not homes:
                scope.faults.add(
                    "unknown-state",
                    f"no file of layout `{scope.name}` has a state `{word.text}`",
                    word.span,
                    "no such state",
                    helps=near(word.text, named),
                )
            for file in dict.fromkeys(file for file, _ in homes):
                _check_ranked(scope, item, word, file)


def _check_ranked(
    scope: Scope, item: tree.PartitionStatement, word: tree.Word, file: tree.FileStatement
) -> None:
    holes: list[Hole] = []
    for name in file.names:
        try:
            holes += FileName.parse(name.text).pattern.holes
        except ReshardError:
            return
    if not any(hole.name == item.over.text and not hole.is_size for hole in holes):
        scope.faults.add(
            "bad-place",
            f"`{word.text}` is cut over `{item.over.text}`, and its file is not one of a rank "
            f"of `{item.over.text}`",
            file.names[0].span,
            f"no `{{{item.over.text}}}` in it",
            beside=[(item.over.span, "cut over it here")],
        )


def _states(
    files: list[tree.FileStatement],
) -> Iterator[tuple[tree.FileStatement, tree.EntryStatement]]:
    for file in files:
        for entry in file.statements:
            if entry.role in ("state", "states"):
                yield file, entry


def _stores(entry: tree.EntryStatement, state: str) -> bool:
    if state == "states":
        return entry.role == "states" or any(name.text != "param" for name in entry.names)
    return entry.role == "states" or any(name.text == state for name in entry.names)
