"""Canonical text: one way to write each tree, such that parsing it gives the tree back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    out = [*block.trivia.comments, _header(block) + " {" + _remark(block.opening)]
    out += _body(block)
    return [*out, "}" + _remark(block.trivia.remark)]


def _header(block: tree.Block) -> str:
    if isinstance(block, tree.SharedBlock):
        return f"config {block.name.text}"
    like = "" if block.like is None else f" like {block.like.text}"
    if isinstance(block, tree.ModelBlock):
        return f"model {block.name.text}{like}"
    model = "" if block.model is None else f" of {block.model.text}"
    whole = " whole" if block.whole else ""
    return f"layout {block.name.text}{model}{like}{whole}{_when(block.when)}"


def _body(block: tree.Block | tree.FileStatement | tree.UnderStatement) -> list[str]:
    """The indented lines between the braces of a block."""
    out: list[str] = []
    for run in _runs(block.statements):
        first = run[0].trivia
        if first.blank:
            out.append("")
        out += first.comments
        if isinstance(run[0], tree.FileStatement | tree.UnderStatement):
            out += _nested(run[0])
        else:
            out += _aligned(run)
    return [f"{INDENT}{line}" if line else "" for line in (*out, *block.closing)]


def _nested(block: tree.FileStatement | tree.UnderStatement) -> list[str]:
    """A statement that has braces of its own."""
    if isinstance(block, tree.UnderStatement):
        header = f'under "{block.prefix.text}"'
    else:
        header = f"file {_places(block.names)}{' optional' if block.optional else ''}"
    opened = f"{header} {{{_remark(block.opening)}"
    return [opened, *_body(block), "}" + _remark(block.trivia.remark)]


def _runs(statements: Sequence[tree.Statement]) -> Iterable[list[tree.Statement]]:
    """Statements of one kind that stand together, without blank lines or comments between them."""
    run: list[tree.Statement] = []
    for statement in statements:
        trivia = statement.trivia
        alone = isinstance(statement, tree.FileStatement | tree.UnderStatement)
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
    return _LIKE_THEM.get(type(statement), type(statement))


_LIKE_THEM: Mapping[type, type] = {
    tree.TensorsStatement: tree.TensorStatement,
    tree.ConfigsStatement: tree.ConfigStatement,
}
"""Statements that align with those of another kind."""


def _aligned(run: list[tree.Statement]) -> list[str]:
    """The lines of a run, with the second column of all statements under each other; several sizes
    in one line stand in nobody's way.
    """
    columns = [_columns(statement) for statement in run]
    is_wide = [isinstance(statement, tree.ConfigsStatement) for statement in run]
    wide = all(is_wide)
    width = max(
        (
            len(first)
            for (first, second), skipped in zip(columns, is_wide, strict=True)
            if second and (wide or not skipped)
        ),
        default=0,
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
        return f"tensor {statement.name.text}", f"[{_words(statement.axes)}]{_when(statement.when)}"
    if isinstance(statement, tree.TensorsStatement):
        return f"tensor {_words(statement.names)}", _tensors(statement)
    if isinstance(statement, tree.MeshStatement):
        axes = [
            item.name.text + ("" if item.size is None else f" = {to_text(item.size)}")
            for item in statement.axes
        ]
        return f"mesh {', '.join(axes)}", ""
    if isinstance(statement, tree.ConfigStatement):
        return f"config {statement.name.text}", f"= {to_text(statement.value)}"
    if isinstance(statement, tree.ConfigsStatement):
        value = "" if statement.value is None else f"= {to_text(statement.value)}"
        return f"config {_words(statement.names)}", value
    if isinstance(statement, tree.LetStatement | tree.FixStatement):
        word = "let" if isinstance(statement, tree.LetStatement) else "fix"
        return f"{word} {statement.name.text}", f"= {to_text(statement.value)}"
    if isinstance(statement, tree.UseStatement):
        return f"use {_words(statement.names)}", ""
    if isinstance(statement, tree.StackStatement):
        return f"stack {_words(statement.axes)}", ""
    if isinstance(statement, tree.TowerStatement):
        return f"include {statement.model.text}{_optional('as', statement.alias)}", ""
    if isinstance(statement, tree.IncludeStatement):
        alias, path = _optional("as", statement.alias), _optional("from", statement.path)
        return f'include {statement.layout.text}{alias} under "{statement.prefix.text}"{path}', ""
    if isinstance(statement, tree.PlaceStatement):
        return f"place {_words(statement.axes)} {_placement(statement.placement)}", ""
    if isinstance(statement, tree.PartitionStatement):
        clauses = (("of", statement.size), ("align", statement.align), ("starts", statement.starts))
        listed = [f" {word} {to_text(item)}" for word, item in clauses if item is not None]
        turns = " round_robin" if statement.is_round_robin else ""
        over = f"over {statement.over.text} as {statement.kind}{''.join(listed)}{turns}"
        return f"partition {_words(statement.states)} {over}", ""
    if isinstance(statement, tree.EntryStatement):
        return _entry(statement)
    if isinstance(statement, tree.TieStatement):
        when = "" if statement.when is None else f" when {to_text(statement.when)}"
        return f'tie "{statement.alias.text}"', f'= "{statement.name.text}"{when}'
    if isinstance(statement, tree.LeaveStatement):
        return f'leave out "{statement.pattern.text}"', f'because "{statement.because.text}"'
    if isinstance(statement, tree.WrapperStatement):
        return f"wrapper {_places(statement.parts, ', ')}", ""
    if isinstance(statement, tree.NamesStatement):
        return f"names {statement.layout.text}", ""
    if isinstance(statement, tree.OrderStatement):
        return f"order {_places(statement.names, ', ')}{_when(statement.when)}", ""
    assert isinstance(statement, tree.RuleStatement)
    return f'"{statement.pattern.text}"', f"= {_holding(statement)}"


def _tensors(statement: tree.TensorsStatement) -> str:
    axes = ", ".join(
        f"{word.text} uncut" if word.text in statement.uncut else word.text
        for word in statement.axes
    )
    out = f"[{axes}]{_when(statement.when)}"
    bias = statement.bias
    if bias is None:
        return out
    own = "" if bias.axes is None else f" [{_words(bias.axes)}]"
    return f"{out} bias {bias.name.text}{own}{_when(bias.when)}"


def _when(condition: Expression | None) -> str:
    return "" if condition is None else f" when {to_text(condition)}"


def _optional(word: str, name: tree.Word | None) -> str:
    return "" if name is None else f" {word} {name.text}"


_ENTRIES = {
    "state": ("state", "at"),
    "states": ("states", "at"),
    "slices": ("slices", "by"),
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
    if entry.role == "fill":
        value = "none" if entry.value is None else to_text(entry.value)
        return f"{first} {_places(entry.places)}", f"= {value}{optional}"
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
    if rule.bias:
        out.append("with bias")
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
