"""What a layout takes from the one that it is like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from reshard.language import tree
from reshard.language.conditions import conjuncts, constant
from reshard.language.expand_rules import atoms, simplified
from reshard.language.expression import Expression, Value

_ORDER: Mapping[type, int] = {
    tree.MeshStatement: 0,
    tree.PlaceStatement: 1,
    tree.ConfigStatement: 2,
    tree.FileStatement: 3,
    tree.PartitionStatement: 4,
    tree.RuleStatement: 6,
}
_OTHERS = 5


def inherited(
    base: Sequence[tree.LayoutStatement], own: Sequence[tree.LayoutStatement]
) -> list[tree.LayoutStatement]:
    """The statements of a layout that is like another one: its own, in the place of those that give
    way to them, and what is left of the other's.
    """
    out: list[tree.LayoutStatement] = []
    pairs = [*_rules(base, own), *_named(base, own)]
    by_old: dict[int, list[tree.LayoutStatement]] = {}
    placed: set[int] = set()
    for old, new in pairs:
        if id(new) not in placed:
            by_old.setdefault(id(old), []).append(new)
            placed.add(id(new))
    gone = {id(old) for old, _ in pairs}
    for item in base:
        left = item if isinstance(item, tree.RuleStatement) else _left(item, own)
        if left is not None and id(item) not in gone:
            out.append(left)
        out += by_old.get(id(item), [])
    out += [item for item in own if id(item) not in placed]
    out.sort(key=lambda item: _ORDER.get(type(item), _OTHERS))
    return out


def spaced(statements: list[tree.LayoutStatement]) -> list[tree.LayoutStatement]:
    """Blank lines where the kind of statement changes from `place` and the like to another."""
    out: list[tree.LayoutStatement] = []
    for number, item in enumerate(statements):
        kinds = [_ORDER.get(type(x), _OTHERS) for x in statements[max(number - 1, 0) : number + 1]]
        begins = kinds[0] != kinds[-1] and kinds[-1] > 1
        if begins is not item.trivia.blank:
            item = replace(item, trivia=replace(item.trivia, blank=begins))
        out.append(item)
    return out


def _rules(
    base: Sequence[tree.LayoutStatement], own: Sequence[tree.LayoutStatement]
) -> list[tuple[tree.LayoutStatement, tree.LayoutStatement]]:
    """Inherited rules, each with the rule of the layout's own that it gives way to."""
    old = [item for item in base if isinstance(item, tree.RuleStatement)]
    new = [item for item in own if isinstance(item, tree.RuleStatement)]
    by_name: dict[str, tree.RuleStatement] = {}
    for rule in new:
        by_name.setdefault(" ".join(rule.pattern.text.split()), rule)
    of_atom: dict[str, list[tree.RuleStatement]] = {}
    for rule in new:
        for word in atoms(rule):
            of_atom.setdefault(word.text, []).append(rule)
    alike: dict[str, list[tree.RuleStatement]] = {}
    for rule in old:
        for word in atoms(rule):
            alike.setdefault(word.text, []).append(rule)
    out: list[tuple[tree.LayoutStatement, tree.LayoutStatement]] = []
    for rule in old:
        named = by_name.get(" ".join(rule.pattern.text.split()))
        if named is not None:
            out.append((rule, named))
            continue
        for word in atoms(rule):
            found = next(
                (x for x in of_atom.get(word.text, ()) if _covers(x, rule, alike[word.text])), None
            )
            if found is not None:
                out.append((rule, found))
                break
    return out


def _covers(
    new: tree.RuleStatement, old: tree.RuleStatement, others: Iterable[tree.RuleStatement]
) -> bool:
    """Whether a rule stores an atom in place of another one: under the same condition, or, where no
    rule has that, wherever the other one does.
    """
    if new.stage is not None and new.stage != old.stage:
        return False
    wanted = conjuncts(new.when)
    if conjuncts(old.when) == wanted:
        return True
    return conjuncts(old.when) > wanted and not any(
        conjuncts(item.when) == wanted for item in others
    )


def _named(
    base: Sequence[tree.LayoutStatement], own: Sequence[tree.LayoutStatement]
) -> list[tuple[tree.LayoutStatement, tree.LayoutStatement]]:
    """Other inherited statements, each with the one of the layout's own that says the same anew."""
    new = {_key(item): item for item in reversed(own) if _key(item) is not None}
    return [(item, new[key]) for item in base if (key := _key(item)) in new]


def _key(item: tree.LayoutStatement) -> object:
    """What a statement is about, where one statement is; None otherwise."""
    if isinstance(item, tree.ConfigStatement):
        return "config", item.name.text
    if isinstance(item, tree.FileStatement):
        return "file", tuple(name.text for name in item.names)
    if isinstance(item, tree.TieStatement):
        return "tie", item.alias.text
    if isinstance(item, tree.LeaveStatement):
        return "leave", item.pattern.text
    alone = (tree.MeshStatement, tree.WrapperStatement, tree.NamesStatement, tree.OrderStatement)
    return type(item) if isinstance(item, alone) else None


def _left(
    item: tree.LayoutStatement, own: Sequence[tree.LayoutStatement]
) -> tree.LayoutStatement | None:
    """An inherited statement about several things, without those that are said anew."""
    if isinstance(item, tree.PlaceStatement):
        said = {word.text for x in own if isinstance(x, tree.PlaceStatement) for word in x.axes}
        axes = tuple(word for word in item.axes if word.text not in said)
        return replace(item, axes=axes) if axes else None
    if isinstance(item, tree.PartitionStatement):
        said = {w.text for x in own if isinstance(x, tree.PartitionStatement) for w in x.states}
        states = tuple(word for word in item.states if word.text not in said)
        return replace(item, states=states) if states else None
    return item


def applying(
    statements: Iterable[tree.LayoutStatement],
    exists: Callable[[str], Expression | None],
    own: Iterable[tree.LayoutStatement] = (),
) -> list[tree.LayoutStatement]:
    """The statements without inherited rules that never apply: their conditions, or those of all
    that they store, are false by the layout's own `config` lines.

    Args:  exists: when an atom is there.  own: rules that stay.
    """
    items = list(statements)
    values: dict[str, Value] = {}
    for item in items:
        if isinstance(item, tree.ConfigStatement):
            value = constant(item.value, {})
            if value is not None:
                values[item.name.text] = value
    kept = {id(item) for item in own}
    out: list[tree.LayoutStatement] = []
    for item in items:
        if isinstance(item, tree.RuleStatement) and id(item) not in kept:
            item = simplified(item, values)
            stored = atoms(item)
            if constant(item.when, {}) is False or (
                stored and all(_is_absent(exists(word.text), values) for word in stored)
            ):
                continue
            if constant(item.when, {}) is True:
                item = replace(item, when=None)
        out.append(item)
    return out


def _is_absent(when: Expression | None, values: Mapping[str, Value]) -> bool:
    return any(constant(part, values) is False for part in conjuncts(when))
