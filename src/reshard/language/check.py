"""The checks that need no checkpoint: every fault of a document at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reshard.errors import Diagnostic, Span
from reshard.language import tree
from reshard.language.check_layout import check_layout
from reshard.language.check_names import check_names
from reshard.language.check_single import check_constant, check_twice
from reshard.language.faults import Faults, near
from reshard.language.layout import Model
from reshard.language.models import NO_MODELS, compile_model, indexed_axes
from reshard.language.words import listed


def check(
    document: tree.Document,
    *,
    models: Mapping[str, Model] = NO_MODELS,
    vocabulary: Collection[str] = (),
) -> tuple[Diagnostic, ...]:
    """Everything that is wrong with a document, in the order of its text; () if nothing is.

    Args:  models: those that its layouts may refer to without declaring them; its own come first.
           vocabulary: names that configurations have; () where names are not to be checked.
    Returns: errors, and warnings about what has no effect.
    """
    faults = Faults()
    if not document.blocks:
        faults.add(
            "syntax",
            "the text has neither a model nor a layout",
            Span.of(document.source, 0, 0),
            "nothing is described",
            helps=['write a layout: `layout NAME { "**.weight" = [rows over tp, ...] }`'],
        )
    check_twice(faults, "model", [block.name for block in document.models], "this file")
    check_twice(faults, "layout", [block.name for block in document.layouts], "this file")
    known = dict(models)
    for block in reversed(document.models):
        known[block.name.text] = compile_model(block)
    for block in document.models:
        _check_model(faults, block)
    for layout in document.layouts:
        faults.of_layout(layout, document)
        check_layout(faults, layout, _model(faults, layout, known), _spelled(document, layout))
    faults.of_layout(None, document)
    if vocabulary:
        check_names(faults, document, vocabulary)
    return faults.sorted()


def _spelled(document: tree.Document, layout: tree.LayoutBlock) -> frozenset[str]:
    """What the other layouts of a layout's model spell: values that pass between them are used."""
    return frozenset(
        item.name.text
        for other in document.layouts
        if other is not layout and other.model == layout.model is not None
        for item in other.statements
        if isinstance(item, tree.ConfigStatement)
    )


def _model(
    faults: Faults, layout: tree.LayoutBlock, known: Mapping[str, Model]
) -> Model | bool | None:
    """The model of a layout; None if it has none, False if nobody knows it."""
    if layout.model is None:
        return None
    name = layout.model.text
    if name in known:
        return known[name]
    faults.add(
        "unknown-model",
        f"there is no model `{name}`",
        layout.model.span,
        "no such model",
        notes=[f"known are {listed(sorted(known))}"] if known else [],
        helps=near(name, known) or [f"declare it with `model {name} {{ ... }}`"],
    )
    return False


def _check_model(faults: Faults, block: tree.ModelBlock) -> None:
    model = compile_model(block)
    where = f"model `{block.name.text}`"
    axes = [item for item in block.statements if isinstance(item, tree.AxisStatement)]
    tensors = [item for item in block.statements if isinstance(item, tree.TensorStatement)]
    check_twice(faults, "axis", [item.name for item in axes], where)
    check_twice(faults, "tensor", [item.name for item in tensors], where)
    for axis in axes:
        check_constant(faults, axis.size, f"the size of axis `{axis.name.text}`", int)
    for tensor in tensors:
        check_constant(faults, tensor.when, f"the condition of tensor `{tensor.name.text}`", bool)
        if len(indexed_axes(tensor)) > 1:
            faults.add(
                "indexed-atom",
                f"the condition of tensor `{tensor.name.text}` names "
                f"{len(indexed_axes(tensor))} of its axes",
                None if tensor.when is None else tensor.when.span,
                f"{listed(indexed_axes(tensor))} are axes of it",
                notes=["a tensor can be there at some indices of one axis"],
            )
        seen: dict[str, tree.Word] = {}
        for word in tensor.axes:
            if word.text in seen:
                faults.add(
                    "axis-twice",
                    f"tensor `{tensor.name.text}` has the axis `{word.text}` twice",
                    word.span,
                    "the second time",
                    beside=[(seen[word.text].span, "the first time")],
                    helps=["give each axis of a tensor a name of its own"],
                )
            elif word.text not in model.axes:
                faults.add(
                    "unknown-axis",
                    f"{where} declares no axis `{word.text}`",
                    word.span,
                    "no such axis",
                    helps=near(word.text, model.axes) or [f"declare it with `axis {word.text}`"],
                )
            seen.setdefault(word.text, word)
