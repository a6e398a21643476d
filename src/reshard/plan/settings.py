"""What the user states of a model (`--set`): what a layout asks for, and what nothing asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from reshard.errors import Diagnostic, ReshardError, layout_error
from reshard.language.expression import Expression, config_value, names
from reshard.language.layout import Layout
from reshard.plan.model_values import model_names, model_values

Settings = Mapping[str, float | None]


def values_by_other_names(
    layout: Layout,
    settings: Settings,
    values: Mapping[str, object],
    read: tuple[Layout, Mapping[str, int]],
) -> dict[str, object]:
    """Sizes and facts that the user states by what the framework of a target calls them.

    Args:  layout: of the target.  values: what is known of the model, by its own names.
           read: the layout that the source was read through, and the sizes of its axes.
    Raises: ReshardError[shape-mismatch].
    """
    assert layout.model is not None
    own = {*values, *layout.config, *model_names(layout.model)}
    given = {name: value for name, value in settings.items() if name not in own}
    out: dict[str, object] = {}
    of: dict[str, str] = {}
    for name, expression in layout.config.items():
        used = [item for item in names(expression) if item in given]
        value = config_value(expression, given) if used else None
        if value is not None:
            out[name], of[name] = value, used[0]
    stored = model_values(read[0], {**values, **out}, read[1])
    for name, value in out.items():
        if name in values and stored.get(name, value) != value:
            raise layout_error(
                "shape-mismatch",
                f"`--set {_text(of[name], given[of[name]])}` is not what the stored shapes say",
                notes=[f"`{name}` is {stored[name]} by the shapes of the tensors"],
                helps=[f"omit `--set {of[name]}=...`"],
            )
    return out


def unused_settings(
    settings: Settings, layouts: Sequence[Layout], *, of_model: bool
) -> tuple[Diagnostic, ...]:
    """A warning of values that nothing asks for, where tensors are copied without a model.

    Args:  layouts: of the source and of the target.
           of_model: whether they are of a model, or the user's own.
    Raises: ReshardError[unused-setting] where they are.
    """
    known = {name for layout in layouts for name in asked_names(layout)}
    unused = [name for name in settings if name not in known]
    if unused and of_model:
        raise _unused(unused[0], settings[unused[0]], known, layouts)
    if not unused:
        return ()
    shown = " ".join(f"--set {_text(name, settings[name])}" for name in unused)
    return (
        Diagnostic(
            "unused-setting",
            f"`{shown}` has no effect here",
            level="warning",
            notes=("the tensors are copied without a model, and sizes and facts are of one",),
            helps=("name the model with `--model`, or omit the setting",),
        ),
    )


def asked_names(layout: Layout) -> Iterator[str]:
    """Every name that an expression of a layout asks for, and those that it gives a value."""
    yield from layout.mesh
    yield from layout.config
    for expression in _expressions(layout):
        if expression is not None:
            yield from names(expression)
    if layout.model is not None:
        yield from model_names(layout.model)
    for rule in layout.rules:
        yield from rule.axes


def _expressions(layout: Layout) -> Iterator[Expression | None]:
    yield from (*layout.mesh.values(), *layout.config.values(), layout.when)
    for split in (*layout.places.values(), *(s for r in layout.rules for s in r.splits.values())):
        yield from (split.pad_to, split.truncated_to)
    for rule in layout.rules:
        yield from (rule.when, rule.only, *(axis.size for axis in rule.axes.values()))
    for partition in layout.partitions:
        yield from (partition.align, partition.size, partition.starts)
    yield from (entry.value for file in layout.files for entry in file.entries)
    yield from (order.when for order in layout.orders)
    yield from (tie.when for tie in layout.ties)


def _text(name: str, value: object) -> str:
    return f"{name}={'null' if value is None else value}"


def _unused(name: str, value: object, known: set[str], layouts: Sequence[Layout]) -> ReshardError:
    shown = ", ".join(f"`{item}`" for item in dict.fromkeys(layout.name for layout in layouts))
    near = get_close_matches(name, sorted(known), 1)
    tails = sorted(item for item in known if item.rpartition(".")[2] == name)
    help_ = f"did you mean `{(tails or near)[0]}`?" if tails or near else f"omit `--set {name}=...`"
    return layout_error(
        "unused-setting",
        f"`--set {_text(name, value)}` has no effect here",
        notes=[f"no value of layout {shown} is called so, or computed from it"],
        helps=[help_],
    )
