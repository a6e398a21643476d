"""Walks the files of a folder by a description: every leaf with the statement that names it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from reshard.errors import ReshardError, label, source_error
from reshard.formats.described.files import Files, RankFile
from reshard.formats.described.tree import (
    Account,
    Found,
    Where,
    children,
    find,
    is_tensor,
    listed,
    open_tree,
    show,
    tensors_in,
)
from reshard.language.layout import Entry, FileRule, Layout
from reshard.language.place import NUMBER, Bindings, Key, Place
from reshard.plan.catalog import Left, SourceFile
from reshard.plan.text import show_count
from reshard.store.source import LocalSource

_UNNAMED = "the layout does not name it"


@dataclass(frozen=True, slots=True)
class Leaf:
    """Something that a statement names.

    Args:  bindings: of the holes in the file's name and in the place.
    """

    entry: Entry
    file: RankFile
    bindings: Bindings
    where: Where
    value: object

    @property
    def shown(self) -> str:
        """File and place, for messages."""
        return f"`{show(self.where)}` in {self.file.path}"


@dataclass(slots=True)
class Walked:
    """All that a folder holds, sorted by its statements.

    Args:  left: what no statement names, and what is left out.
    """

    leaves: list[Leaf] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    files: list[SourceFile] = field(default_factory=list)

    def of(self, *roles: str) -> list[Leaf]:
        """The leaves of some kinds of statement."""
        return [leaf for leaf in self.leaves if leaf.entry.role in roles]


def walk_files(layout: Layout, root: Path, files: Files) -> Walked:
    """Every leaf of every file.

    Raises: ReshardError[missing-place | unnamed-tensor | outside-link], and what is wrong with a
            file itself.
    """
    out = Walked()
    places: dict[int, Place] = {}
    seen: dict[int, list[str]] = {}
    unnamed: list[ReshardError] = []
    source = LocalSource(root)
    for item in files.known:
        stored = source.stat(item.path)
        rule = layout.files[item.rule]
        if not rule.entries:
            out.left.append(Left(item.path, "", "the layout names nothing in it"))
            continue
        if any(entry.names != ("config",) for entry in rule.entries):  # it goes along by itself
            out.files.append(stored)
        tree = open_tree(root / item.path)
        seen[item.rule] = [str(key).lstrip("/") for key, _ in children(tree)]
        count = len(out.leaves)
        lost = _walk(out, rule, item, tree, places)
        if lost:
            unnamed.append(_unnamed(rule, item, lost))
        elif needed_of(rule) and not any(
            leaf.entry in needed_of(rule) for leaf in out.leaves[count:]
        ):
            raise _nothing(needed_of(rule)[0], item, seen[item.rule])
    obeyed = {id(leaf.entry) for leaf in out.leaves}
    for index, keys in seen.items():
        for entry in needed_of(layout.files[index]):
            if id(entry) not in obeyed:
                first = next(item for item in files.known if item.rule == index)
                raise _nothing(entry, first, keys)
    if unnamed:
        raise unnamed[0]
    return out


def needed_of(rule: FileRule) -> list[Entry]:
    """The statements that must name something."""
    return [x for x in rule.entries if not x.optional and x.role not in ("keep", "leave")]


def _walk(
    out: Walked, rule: FileRule, item: RankFile, tree: object, places: dict[int, Place]
) -> list[str]:
    """Sort the leaves of one file; returns where tensors lie that no statement names."""
    account = Account()
    for entry in rule.entries:
        if entry.role in ("keep", "leave"):
            _rest(out, entry, item, tree, account)
            continue
        for found in _chosen(entry, tree, places):
            if account.is_taken(found.where) and entry.role in ("state", "states"):
                continue
            if any(item.bindings.get(k, v) != v for k, v in found.bindings.items()):
                continue
            account.take(found.where)
            bindings = {**item.bindings, **found.bindings}
            out.leaves.append(Leaf(entry, item, bindings, found.where, found.value))
    lost = []
    for where, value in account.rest(tree):
        if isinstance(value, (dict, list, tuple)) and not value:
            continue
        lost += [show((*where, *inner)) for inner, _ in tensors_in(value)]
        out.left.append(Left(item.path, _key(where), _UNNAMED))
    return lost


def _chosen(entry: Entry, tree: object, places: dict[int, Place]) -> list[Found]:
    """What lies at the first alternative that covers everything where it looks."""
    known = places.get(id(entry))
    best: list[Found] = []
    for place in (known,) if known is not None else entry.places:
        found, missed = find(tree, place)
        found = [item for item in found if fits(entry, item.value)]
        if found and (not best or not missed):
            best = found
            places[id(entry)] = place
        if found and not missed:
            break
    return best


def _rest(out: Walked, entry: Entry, item: RankFile, tree: object, account: Account) -> None:
    """What is kept or left out: all at a place that no statement before it has taken."""
    for place in entry.places:
        for found in find(tree, place)[0]:
            if account.is_taken(found.where):
                continue
            for where, value in [*account.rest(found.value, found.where)]:
                if where == () and not children(tree):
                    continue
                account.take(where)
                if entry.role == "leave":
                    out.left.append(Left(item.path, _key(where), entry.because))
                else:
                    bindings = {**item.bindings, **found.bindings}
                    out.leaves.append(Leaf(entry, item, bindings, where, value))


def fits(entry: Entry, value: object) -> bool:
    """Whether a value is of the kind that a statement names."""
    if entry.role in ("state", "states"):
        return is_tensor(value) or (isinstance(value, (int, float)) and entry.names != ("param",))
    if entry.role == "named" and entry.places[0].has(NUMBER):
        return isinstance(value, str)
    if entry.role in ("number", "named"):
        return isinstance(value, (list, tuple))
    return True


def _key(where: Where) -> str:
    return ".".join(str(at).lstrip("/") for at in where)


def _nothing(entry: Entry, item: RankFile, keys: Iterable[str]) -> ReshardError:
    place = entry.places[0]
    known = list(keys)
    first = place.steps[0] if place.steps else None
    literal = ""
    if isinstance(first, Key):
        literal = "".join(piece for piece in first.pattern.pieces if isinstance(piece, str))
    near = get_close_matches(literal, known, 1)
    helps: list[str] = []
    if literal.partition(".")[0] in known:
        helps = ["keys of nested dicts are separated by `/`, as in `model/{name}`"]
    elif near and near[0] != literal:
        helps = [f"did you mean `{near[0]}`?"]
    else:
        helps = ["correct the place, or write `optional` behind it if it may be missing"]
    return source_error(
        "missing-place",
        f"nothing lies at `{place.text}` in {item.path}",
        notes=[f"it has {listed([f'`{key}`' for key in known])}"],
        helps=helps,
        primary=label(place.span, "nothing lies here"),
    )


def _unnamed(rule: FileRule, item: RankFile, lost: list[str]) -> ReshardError:
    return source_error(
        "unnamed-tensor",
        f"{show_count(len(lost), 'tensor')} in {item.path} {'is' if len(lost) == 1 else 'are'} "
        "named by no statement",
        notes=[listed([f"`{name}`" for name in lost])],
        helps=[
            f'say what they are: `state param at "..."`, `keep "{lost[0]}"`, or `leave out '
            f'"{lost[0]}" because "..."`'
        ],
        primary=label(rule.names[0].span or rule.span, "in this file"),
    )
