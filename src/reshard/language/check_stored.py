"""Checks of all rules of a layout together: every atom stored, and no two rules for one thing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from reshard.language import tree
from reshard.language.conditions import Conditions, conjuncts, constant
from reshard.language.expression import Expression, Truth, to_text
from reshard.language.implied import implied
from reshard.language.layout import Model, ModelTensor
from reshard.language.scope import Scope
from reshard.language.words import listed


@dataclass(frozen=True, slots=True)
class Stored:
    """A rule and the atoms that it stores; none without a model."""

    rule: tree.RuleStatement
    atoms: tuple[str, ...] = ()

    def conditions(self, model: Model | None) -> Conditions:
        """What must hold for the rule to apply, the conditions of its atoms included."""
        out = conjuncts(self.rule.when)
        for atom in self.atoms if model else ():
            assert model is not None
            out |= conjuncts(model.tensors[atom].when)
        return out

    def only(self, model: Model) -> Collection[Expression | None]:
        """At which indices its atoms are there."""
        return {model.tensors[atom].only for atom in self.atoms}


def check_stored(
    scope: Scope,
    block: tree.LayoutBlock,
    model: Model | None,
    stored: list[Stored],
    meant: Collection[str],
) -> None:
    """Fault rules with one name that nothing tells apart, and atoms with no or too many rules.

    Args:  meant: atoms that are not missed, because a rule that may store them has a fault.
    """
    _check_names(scope, model, stored)
    if model is None:
        return
    by_atom: dict[str, list[Stored]] = {name: [] for name in model.tensors}
    for item in stored:
        for atom in item.atoms:
            by_atom[atom].append(item)
    facts = implied(block, model)
    absent = _absent(model, block, facts)
    without = [name for name, items in by_atom.items() if not items and name in absent]
    said = {item.name.text for item in block.statements if isinstance(item, tree.ConfigStatement)}
    if facts and without and not facts.keys() <= said and not meant:
        scope.faults.add(
            "unstored-atom",
            f"layout `{scope.name}` is of models without {listed(without)}",
            block.name.span,
            "has no rule for them" if len(without) > 1 else "has no rule for it",
            notes=[
                "taken as said: "
                + ", ".join(f"`config {name} = {to_text(value)}`" for name, value in facts.items())
            ],
            helps=["add rules for other models, or write these lines"],
            level="warning",
        )
    missing = [
        name
        for name, items in by_atom.items()
        if not items and name not in meant and name not in absent
    ]
    if missing:
        scope.faults.add(
            "unstored-atom",
            f"no rule of layout `{scope.name}` stores {listed(missing)}",
            block.name.span,
            f"{'this atom is' if len(missing) == 1 else 'these atoms are'} not stored",
            beside=[(model.tensors[missing[0]].span, f"`{missing[0]}` is declared here")],
            helps=[
                f'add a rule for each atom: `"NAME" = {missing[0]}'
                f"[{', '.join(model.tensors[missing[0]].axes)}]`"
            ],
        )
    for name, items in by_atom.items():
        _check_always(scope, model, model.tensors[name], items)
        _check_copies(scope, model, name, items)


def _absent(model: Model, block: tree.LayoutBlock, facts: Mapping[str, Truth]) -> Collection[str]:
    """The atoms that a layout's own `config` lines say are not there: `config bias = false`."""
    said: dict[str, object] = {name: value.value for name, value in facts.items()}
    for item in block.statements:
        if isinstance(item, tree.ConfigStatement):
            value = constant(item.value, {})
            if value is not None:
                said[item.name.text] = value
    return {
        tensor.name
        for tensor in model.tensors.values()
        if any(constant(part, said) is False for part in conjuncts(tensor.when))
    }


def _check_names(scope: Scope, model: Model | None, stored: list[Stored]) -> None:
    names: dict[str, list[Stored]] = {}
    for item in stored:
        names.setdefault(item.rule.pattern.text, []).append(item)
    for text, items in names.items():
        for first, second in combinations(items, 2):
            if _apart_by_stage(first, second):
                continue
            if model and first.only(model) != second.only(model):
                continue  # at other indices
            one, other = first.conditions(model), second.conditions(model)
            if one and other and one != other:
                continue  # may exclude each other; the checkpoint tells
            scope.faults.add(
                "duplicate-rule",
                f'two rules of layout `{scope.name}` have the name "{text}"',
                second.rule.pattern.span,
                "the second one",
                beside=[(first.rule.pattern.span, "the first one")],
                notes=["rules have no order; exactly one must match each tensor"],
                helps=["remove one of them"]
                if _is_same(first.rule, second.rule)
                else ["tell them apart with `when` in both, or with their stages"],
            )
            break


def _is_same(one: tree.RuleStatement, other: tree.RuleStatement) -> bool:
    return replace(one, trivia=tree.Trivia()) == replace(other, trivia=tree.Trivia())


def _check_always(scope: Scope, model: Model, tensor: ModelTensor, items: list[Stored]) -> None:
    """Fault an atom that is stored under one condition only, which is not its own."""
    kinds = {item.conditions(model) - conjuncts(tensor.when) for item in items}
    if len(kinds) != 1 or frozenset() in kinds:
        return  # several conditions may cover all cases; the checkpoint tells
    needed = listed(sorted(to_text(condition) for condition in next(iter(kinds))))
    rule = items[0].rule
    scope.faults.add(
        "unstored-atom",
        f"layout `{scope.name}` stores `{tensor.name}` only when {needed}",
        rule.pattern.span,
        "the only rule that stores it" if len(items) == 1 else "one of the rules that store it",
        beside=[(tensor.span, f"`{tensor.name}` is declared without this condition")],
        helps=[f"declare the condition in the model: `tensor {tensor.name} [...] when ...`"],
    )


def _check_copies(scope: Scope, model: Model, name: str, items: list[Stored]) -> None:
    """Fault two rules that always store one atom, without saying that one is a copy."""
    for first, second in combinations(items, 2):
        if (
            first.rule.stage != second.rule.stage
            or first.rule.optional
            or second.rule.optional
            or first.conditions(model) != second.conditions(model)
            or first.rule.pattern.text == second.rule.pattern.text
        ):
            continue
        scope.faults.add(
            "ambiguous-atom",
            f"two rules of layout `{scope.name}` store `{name}`",
            second.rule.pattern.span,
            "stored again",
            beside=[(first.rule.pattern.span, "first stored here")],
            helps=[
                "if one of them is a copy, say when it is there: `when ...`, `on last stage`, or "
                "`optional`"
            ],
        )
        return


def _apart_by_stage(first: Stored, second: Stored) -> bool:
    stages = {first.rule.stage, second.rule.stage}
    return len(stages) == 2 and None not in stages
