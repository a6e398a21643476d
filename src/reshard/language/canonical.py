"""Canonical text: one way to write each tree, such that parsing it gives the tree back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reshard.language import tree
from reshard.language.expression import PRODUCT_PRECEDENCE, Expression, Integer, to_text

INDENT = "    "


def format_document(document: tree.Document) -> str:
    """The canonical text of a document; comments stay with their statements."""
    out: list[str] = []
    for block in document.blocks:
        if out:
            out.append("")
        out += _block(block)
    if document.closing:
        if out:
            out.append("")
        out += document.closing
    return "\n".join(out) + "\n" if out else ""


def _block(block: tree.Block) -> list[str]:
    header = f"model {block.name.text}"
    if isinstance(block, tree.LayoutBlock):
        header = f"layout {block.name.text}"
        if block.model is not None:
            header += f" of {block.model.text}"
        if block.when is not None:
            header += f" when {to_text(block.when)}"
    out = [*block.trivia.comments, header + " {" + _remark(block.opening)]
    out += _body(block)
    return [*out, "}" + _remark(block.trivia.remark)]


def _body(block: tree.Block | tree.FileStatement) -> list[str]:
    """The indented lines between the braces of a block."""
    out: list[str] = []
    for run in _runs(block.statements):
        first = run[0].trivia
        if first.blank:
            out.append("")
        out += first.comments
        out += _file(run[0]) if isinstance(run[0], tree.FileStatement) else _aligned(run)
    return [f"{INDENT}{line}" if line else "" for line in (*out, *block.closing)]


def _file(file: tree.FileStatement) -> list[str]:
    optional = " optional" if file.optional else ""
    header = f"file {_places(file.names)}{optional} {{{_remark(file.opening)}"
    return [header, *_body(file), "}" + _remark(file.trivia.remark)]


def _runs(statements: Sequence[tree.Statement]) -> Iterable[list[tree.Statement]]:
    """Statements of one kind that stand together, without blank lines or comments between them."""
    run: list[tree.Statement] = []
    for statement in statements:
        trivia = statement.trivia
        alone = isinstance(statement, tree.FileStatement)
        other = bool(run) and _kind(run[-1]) != _kind(statement)
        if run and (alone or other or trivia.blank or trivia.comments):
            yield run
            run = []
        run.append(statement)
    if run:
        yield run


def _kind(statement: tree.Statement) -> object:
    """What statements have in common that align."""
    if isinstance(statement, tree.EntryStatement):
        return statement.role in ("fill", "keep", "leave") and statement.role
    return type(statement)


def _aligned(run: list[tree.Statement]) -> list[str]:
    """The lines of a run, with the second column of all statements under each other."""
    columns = [_columns(statement) for statement in run]
    width = (
        max(len(first) for first, second in columns if second)
        if any(second for _, second in columns)
        else 0
    )
    out = []
    for statement, (first, second) in zip(run, columns, strict=True):
        text = f"{first:<{width}} {second}" if second else first
        out.append(f"{text}{_remark(statement.trivia.remark)}")
    return out


def _columns(statement: tree.Statement) -> tuple[str, str]:
    """A statement as the text before and behind the place where its neighbours align."""
    if isinstance(statement, tree.AxisStatement):
        size = "" if statement.size is None else f"= {to_text(statement.size)}"
        return f"axis {statement.name.text}", size
    if isinstance(statement, tree.TensorStatement):
        when = "" if statement.when is None else f" when {to_text(statement.when)}"
        return f"tensor {statement.name.text}", f"[{_words(statement.axes)}]{when}"
    if isinstance(statement, tree.MeshStatement):
        axes = [
            item.name.text + ("" if item.size is None else f" = {to_text(item.size)}")
            for item in statement.axes
        ]
        return f"mesh {', '.join(axes)}", ""
    if isinstance(statement, tree.ConfigStatement):
        return f"config {statement.name.text}", f"= {to_text(statement.value)}"
    if isinstance(statement, tree.PlaceStatement):
        return f"place {_words(statement.axes)} {_placement(statement.placement)}", ""
    if isinstance(statement, tree.PartitionStatement):
        align = "" if statement.align is None else f" align {to_text(statement.align)}"
        over = f"over {statement.over.text} as {statement.kind}{align}"
        return f"partition {_words(statement.states)} {over}", ""
    if isinstance(statement, tree.EntryStatement):
        return _entry(statement)
    if isinstance(statement, tree.TieStatement):
        return f'tie "{statement.alias.text}"', f'= "{statement.name.text}"'
    if isinstance(statement, tree.LeaveStatement):
        return f'leave out "{statement.pattern.text}"', f'because "{statement.because.text}"'
    if isinstance(statement, tree.WrapperStatement):
        return f"wrapper {_places(statement.parts, ', ')}", ""
    if isinstance(statement, tree.NamesStatement):
        return f"names {statement.layout.text}", ""
    if isinstance(statement, tree.OrderStatement):
        when = "" if statement.when is None else f" when {to_text(statement.when)}"
        return f"order {_places(statement.names, ', ')}{when}", ""
    assert isinstance(statement, tree.RuleStatement)
    return f'"{statement.pattern.text}"', f"= {_holding(statement)}"


_ENTRIES = {
    "state": ("state", "at"),
    "states": ("states", "at"),
    "number": ("number", "by"),
    "named": ("named", "by"),
    "order": ("order", "by"),
    "run": ("run", "="),
    "fill": ("fill", ""),
    "keep": ("keep", ""),
    "leave": ("leave out", ""),
}


def _entry(entry: tree.EntryStatement) -> tuple[str, str]:
    word, joint = _ENTRIES[entry.role]
    first = " ".join([word, *([_words(entry.names)] if entry.names else [])])
    if entry.because is not None:
        return f"{first} {_places(entry.places)}", f'because "{entry.because.text}"'
    optional = " optional" if entry.optional else ""
    if entry.value is not None:
        return f"{first} {_places(entry.places)}", f"= {to_text(entry.value)}{optional}"
    return first, f"{joint} {_places(entry.places)}{optional}".lstrip()


def _places(texts: tuple[tree.Word, ...], joint: str = " or ") -> str:
    return joint.join(f'"{text.text}"' for text in texts)


def _holding(rule: tree.RuleStatement) -> str:
    dims = [_dim(term) for term in rule.dims] + ["..."] * rule.rest
    out = [f"{rule.atom.text if rule.atom else ''}[{', '.join(dims)}]"]
    if rule.averaged_over:
        out.append(f"averaged over {_words(rule.averaged_over)}")
    if rule.stage is not None:
        out.append(f"on {rule.stage} stage")
    if rule.optional:
        out.append("optional")
    if rule.when is not None:
        out.append(f"when {to_text(rule.when)}")
    return " ".join(out)


def _dim(term: tree.TermTree) -> str:
    if isinstance(term, tree.AxisTerm):
        size = "" if term.size is None else f":{_size(term.size)}"
        placement = "" if term.placement is None else f" {_placement(term.placement, inside=True)}"
        return f"{term.name.text}{size}{placement}"
    if isinstance(term, tree.ProductTerm):
        return " ".join(_dim(item) for item in term.factors) or "1"
    return f"({' + '.join(_part(part) for part in term.parts)})"


def _part(part: tree.SumPart) -> str:
    return _dim(part.term) if part.label is None else f"{part.label.text}[{_dim(part.term)}]"


def _size(size: Expression) -> str:
    return to_text(size) if isinstance(size, Integer) else f"({to_text(size)})"


def _placement(placement: tree.Placement, *, inside: bool = False) -> str:
    """`over ...` and what follows; inside a rule's brackets lists stand in parentheses."""
    out = []
    if placement.over:
        over = _words(placement.over)
        out.append(f"over ({over})" if inside and len(placement.over) > 1 else f"over {over}")
    if placement.rule == "sizes":
        sizes = ", ".join(str(size) for size in placement.sizes)
        out.append(f"as ({sizes})" if inside else f"as {sizes}")
    elif placement.rule != "even":
        out.append(f"as {placement.rule}")
    least = PRODUCT_PRECEDENCE if inside else 0
    if placement.pad_to is not None:
        out.append(f"padded to a multiple of {to_text(placement.pad_to, least)}")
    if placement.truncated_to is not None:
        out.append(f"truncated to {to_text(placement.truncated_to, least)}")
    return " ".join(out)


def _words(words: tuple[tree.Word, ...]) -> str:
    return ", ".join(word.text for word in words)


def _remark(comment: str | None) -> str:
    return "" if comment is None else f"  {comment}"
