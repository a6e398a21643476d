"""Checks of a rule in a layout of a model: every axis of each atom in its name or shape, once."""

from __future__ import annotations

import re
from itertools import pairwise

from reshard.errors import Span
from reshard.language import tree
from reshard.language.expression import to_text
from reshard.language.faults import closest, near
from reshard.language.layout import Model
from reshard.language.pattern import NamePattern
from reshard.language.scope import Scope
from reshard.language.words import listed

Use = tuple[str, Span | None]


def check_modelled_rule(
    scope: Scope,
    model: Model,
    rule: tree.RuleStatement,
    pattern: NamePattern | None,
    meant: set[str],
) -> tuple[str, ...]:
    """Check one rule; return the atoms that it stores.

    Args:  pattern: None if its name could not be read.
           meant: gets the atoms that a rule which is not understood may have meant.
    """
    _check_kind(scope, model, rule)
    slots: list[Use] = []
    for slot in pattern.slots if pattern else ():
        slots.append((slot.axis, slot.span))
        if slot.over:
            scope.faults.add(
                "layout-kind",
                f"`{slot.axis}` is placed here, and layout `{scope.name}` has a model",
                slot.span,
                "not stated here",
                helps=[f"state it once for the layout: `place {slot.axis} over {slot.over[0]}`"],
            )
        elif slot.local and slot.axis in model.axes and slot.axis not in scope.places:
            scope.faults.add(
                "local-index",
                f"`{slot.axis}` is counted on each rank, and nothing says how it is cut",
                slot.span,
                "over which mesh axis?",
                helps=[
                    f"place it: `place {slot.axis} over pp`, or write `{{{slot.axis}}}` for an "
                    "index that counts through"
                ],
                once=f"place {slot.axis}",
            )
    shared, atoms = _atoms(scope, model, rule, meant)
    known = [(word, uses) for word, uses in atoms if _check_atom(scope, model, word, meant)]
    _check_indexed(scope, model, [word for word, _ in known])
    if known:
        _check_axes(scope, model, rule, slots + shared, known, readable=pattern is not None)
    _check_averaged(scope, model, rule, known)
    return tuple(dict.fromkeys(word.text for word, _ in known))


def _check_indexed(scope: Scope, model: Model, words: list[tree.Word]) -> None:
    """Fault atoms in one sum that are not there at the same indices."""
    for first, second in pairwise(words):
        one, other = model.tensors[first.text], model.tensors[second.text]
        if (one.only, one.along) != (other.only, other.along):
            scope.faults.add(
                "indexed-atom",
                f"`{first.text}` and `{second.text}` are stored together, and are not there at the "
                "same indices",
                second.span,
                "there at others",
                beside=[(one.span, f"`{first.text}` is declared here")],
                helps=["store them under names of their own"],
            )
            return


def _name_it(model: Model, rule: tree.RuleStatement) -> str:
    """What to write in place of an axis without a name."""
    tensor = None if rule.atom is None else model.tensors.get(rule.atom.text)
    if tensor is None:
        return "name every axis of the atom; a dimension of size one is written `1`"
    named = set(re.findall(r"\{(?:local\s+)?(\w+)", rule.pattern.text))
    axes = ", ".join(axis for axis in tensor.axes if axis not in named)
    return f"name the axes: `{tensor.name}[{axes}]`; a dimension of size one is written `1`"


def _check_kind(scope: Scope, model: Model, rule: tree.RuleStatement) -> None:
    """Fault what only a rule without a model can say."""
    for term in tree.axis_terms(rule.dims):
        name = term.name.text
        if name == "_":
            scope.faults.add(
                "layout-kind",
                f"an axis without a name, and layout `{scope.name}` has a model",
                term.span,
                "which axis of the atom is this?",
                helps=[_name_it(model, rule)],
            )
        elif term.size is not None:
            scope.faults.add(
                "layout-kind",
                f"the size of `{name}` is stated here, and layout `{scope.name}` has a model",
                term.span,
                "not stated here",
                helps=[
                    f"leave it out here; the model states it: `axis {name} = {to_text(term.size)}`"
                ],
            )
        elif term.placement is not None:
            scope.faults.add(
                "layout-kind",
                f"`{name}` is placed here, and layout `{scope.name}` has a model",
                term.span,
                "not stated here",
                helps=[f"state it once for the layout: `place {name} ...`"],
            )
    if rule.rest:
        scope.faults.add(
            "layout-kind",
            f"this rule leaves axes out, and layout `{scope.name}` has a model",
            rule.rest_span,
            "`...` stands for axes without names",
            helps=[_name_it(model, rule)],
        )


def _atoms(
    scope: Scope, model: Model, rule: tree.RuleStatement, meant: set[str]
) -> tuple[list[Use], list[tuple[tree.Word, list[Use]]]]:
    """The axes that all atoms of a rule share, and the atoms, each with those of its part."""
    sums = list(tree.sum_terms(rule.dims))
    if len(sums) > 1 or (sums and rule.atom is not None):
        named = [part.label.text for item in sums for part in item.parts if part.label is not None]
        meant.update(named)
    if rule.atom is not None:
        if sums:
            scope.faults.add(
                "nested-sum",
                f"`{rule.atom.text}[...]` is one atom, and a sum in it would hold others",
                sums[0].span,
                "a sum",
                helps=[
                    f"leave `{rule.atom.text}` out, and name an atom for each part: "
                    f"`{_said(rule, rule.atom)}`"
                ],
            )
            return [], []
        return _uses(rule.dims), [(rule.atom, [])]
    if not sums:
        meant.update(model.tensors)
        scope.faults.add(
            "unknown-atom",
            f"this rule names no atom of model `{model.name}`",
            rule.span,
            "which atom is stored under this name?",
            helps=["write the atom before the bracket: `atom[...]`"],
        )
        return [], []
    if len(sums) > 1:
        scope.faults.add(
            "nested-sum",
            "a rule of a layout with a model holds one sum",
            sums[1].span,
            "the second one",
            beside=[(sums[0].span, "the first one")],
            helps=["write all parts in one sum: `(a[...] + b[...] + c[...])`"],
        )
        return [], []
    seen: dict[str, tree.Word] = {}
    atoms = []
    for part in sums[0].parts:
        if part.label is None:
            meant.update(model.tensors)
            scope.faults.add(
                "unlabelled-part",
                "a part of this sum names no atom",
                part.span,
                "which atom is this?",
                helps=[_labelled(model, rule, sums[0])],
                once=str(part.span and part.span.line),
            )
            continue
        if part.label.text in seen:
            scope.faults.add(
                "duplicate-name",
                f"atom `{part.label.text}` stands twice in one sum",
                part.label.span,
                "the second time",
                beside=[(seen[part.label.text].span, "the first time")],
            )
            continue
        seen[part.label.text] = part.label
        atoms.append((part.label, _uses((part.term,))))
    inside = {id(term) for part in sums[0].parts for term in tree.axis_terms((part.term,))}
    shared = [
        (term.name.text, term.span)
        for term in tree.axis_terms(rule.dims)
        if id(term) not in inside and term.name.text != "_"
    ]
    return shared, atoms


def _labelled(model: Model, rule: tree.RuleStatement, term: tree.SumTerm) -> str:
    """The sum with an atom and its axes in each part, where the parts are names of atoms."""
    names = [
        part.term.name.text
        for part in term.parts
        if part.label is None
        and isinstance(part.term, tree.AxisTerm)
        and part.term.name.text in model.tensors
    ]
    if len(names) != len(term.parts):
        return "name it as in `(wq[q d] + wk[d])`"
    inside = {id(axis) for part in term.parts for axis in tree.axis_terms((part.term,))}
    said = {axis.name.text for axis in tree.axis_terms(rule.dims) if id(axis) not in inside}
    said.update(re.findall(r"\{(?:local\s+)?(\w+)", rule.pattern.text))
    parts = []
    for name in names:
        left = " ".join(axis for axis in model.tensors[name].axes if axis not in said)
        parts.append(f"{name}[{left or '1'}]")
    return f"write `({' + '.join(parts)})`: an atom with its further axes in brackets, or `1`"


def _uses(terms: tuple[tree.TermTree, ...]) -> list[Use]:
    return [(term.name.text, term.span) for term in tree.axis_terms(terms) if term.name.text != "_"]


def _check_atom(scope: Scope, model: Model, word: tree.Word, meant: set[str]) -> bool:
    if word.text in model.tensors:
        return True
    close = closest(word.text, model.tensors)
    meant.update(model.tensors if close is None else [close])
    scope.faults.add(
        "unknown-atom",
        f"model `{model.name}` has no tensor `{word.text}`",
        word.span,
        "no such atom",
        helps=near(word.text, model.tensors) or [f"declare it with `tensor {word.text} [...]`"],
    )
    return False


def _check_axes(
    scope: Scope,
    model: Model,
    rule: tree.RuleStatement,
    shared: list[Use],
    atoms: list[tuple[tree.Word, list[Use]]],
    *,
    readable: bool,
) -> None:
    """Prove that every axis of each atom stands once in name and shape, or say what is off."""
    wrong: dict[Use, list[str]] = {}
    twice: dict[tuple[Use, Span | None], list[str]] = {}
    missing: dict[tuple[str, ...], list[tree.Word]] = {}
    for word, own in atoms:
        axes = model.tensors[word.text].axes
        seen: dict[str, Span | None] = {}
        for use in sorted(shared + own, key=_start):
            if use[0] not in axes:
                wrong.setdefault(use, []).append(word.text)
            elif use[0] in seen:
                twice.setdefault((use, seen[use[0]]), []).append(word.text)
            seen.setdefault(*use)
        left = tuple(axis for axis in dict.fromkeys(axes) if axis not in seen)
        if left:
            missing.setdefault(left, []).append(word)
    lost = _lost_index(rule)
    for (name, span), holders in wrong.items():
        _wrong_axis(scope, model, name, span, holders)
    for ((name, span), first), holders in twice.items():
        scope.faults.add(
            "axis-twice",
            f"axis `{name}` of {listed(holders)} stands twice in one rule",
            span,
            "the second time",
            beside=[(first, "the first time")],
        )
    if wrong or not readable or rule.rest or _has_blank(rule):
        return  # what is missing is probably what is misspelled
    for left, words in missing.items():
        holders = [word.text for word in words]
        declared = [
            (model.tensors[name].span, f"`{name}` is declared here") for name in holders[:1]
        ]
        if lost is not None and all(left == model.tensors[name].axes[:1] for name in holders):
            scope.faults.add(
                "axis-missing",
                f"{listed(holders)} {'is' if len(words) == 1 else 'are'} stored without axis "
                f"{listed(left)}",
                lost[0],
                f"`{{{left[0]}}}` belongs here",
                beside=declared,
                notes=[_ONCE],
                helps=[
                    f"write `{{{left[0]}}}` in place of `{lost[1]}`, or `{{local {left[0]}}}` "
                    "where each rank counts from 0"
                ],
            )
            continue
        scope.faults.add(
            "axis-missing",
            f"{listed(holders)} {'is' if len(words) == 1 else 'are'} stored without "
            f"{'axis' if len(left) == 1 else 'axes'} {listed(left)}",
            words[0].span,
            f"{listed(left)} {'is' if len(left) == 1 else 'are'} neither in the name nor in the "
            "shape",
            beside=declared,
            notes=[_ONCE],
            helps=[
                f"write {listed(f'{{{axis}}}' for axis in left)} in the name, or "
                f"{listed(left)} in the brackets"
            ],
        )


_ONCE = "every axis of an atom stands exactly once, in the name or in the shape"
_INDEX_LIKE = re.compile(r"\*+|\((?:[^()]|\\.)*\)|\[[^\]]*\]\+?|(?<![\w{])\d+(?!\w)")


def _lost_index(rule: tree.RuleStatement) -> tuple[Span, str] | None:
    """What stands in a name where an index may be meant: a number, a wildcard, a regular
    expression; None unless there is one such.
    """
    span = rule.pattern.span
    found = list(_INDEX_LIKE.finditer(rule.pattern.text))
    if span is None or len(found) != 1:
        return None
    return span.inside(*found[0].span()), found[0][0]


def _said(rule: tree.RuleStatement, atom: tree.Word) -> str:
    """The brackets of a rule as they are written."""
    if rule.span is None or atom.span is None:
        return "[(wq[q d] + wk[d]), h]"
    text = rule.span.source.text[atom.span.end : rule.span.end]
    depth, end = 0, 0
    for place, mark in enumerate(text):
        depth += (mark == "[") - (mark == "]")
        if mark == "]" and not depth:
            end = place + 1
            break
    return " ".join(text[:end].split())


def _start(use: Use) -> int:
    return 0 if use[1] is None else use[1].start


def _has_blank(rule: tree.RuleStatement) -> bool:
    return any(term.name.text == "_" for term in tree.axis_terms(rule.dims))


def _wrong_axis(
    scope: Scope, model: Model, name: str, span: Span | None, holders: list[str]
) -> None:
    if name not in model.axes:
        scope.faults.add(
            "unknown-axis",
            f"model `{model.name}` declares no axis `{name}`",
            span,
            "no such axis",
            helps=near(name, model.axes),
        )
        return
    scope.faults.add(
        "unknown-axis",
        f"{listed(holders)} {'has' if len(holders) == 1 else 'have'} no axis `{name}`",
        span,
        "not an axis of this atom" if len(holders) == 1 else "not an axis of these atoms",
        beside=[
            (model.tensors[holder].span, f"`{holder}` is declared here") for holder in holders[:1]
        ],
        helps=[
            f"an index in a name is one axis of the atom: "
            f"{listed(model.tensors[holder].axes, 'or')}"
            for holder in holders[:1]
            if span is not None and span.source.text[span.start] == "{"
        ],
    )


def _check_averaged(
    scope: Scope, model: Model, rule: tree.RuleStatement, atoms: list[tuple[tree.Word, list[Use]]]
) -> None:
    for word in rule.averaged_over:
        for atom, _ in atoms:
            cut = [
                axis
                for axis in model.tensors[atom.text].axes
                if axis in scope.places
                and word.text in [item.text for item in scope.places[axis][1].over]
            ]
            if cut:
                scope.faults.add(
                    "mesh-axis-twice",
                    f"this rule averages over mesh axis `{word.text}`, which cuts axis `{cut[0]}` "
                    f"of `{atom.text}`",
                    word.span,
                    "averaged over",
                    beside=[(scope.places[cut[0]][0].span, f"`{cut[0]}` is placed here")],
                )
                break
