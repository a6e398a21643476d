"""What the shipped layouts mean, written out: `tests/golden/layouts` has every line of every block.

The order of statements means nothing, but for `config` lines that speak of one name, so that lines
are sorted here, and such a line says which ones come before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

import pytest

from reshard.language import format_document, names, parse, tree
from reshard.language.check import check
from reshard.language.expression import Binary, Expression, Unary, Variable
from reshard.language.library import missing_models, shipped

FAMILIES = {family.name: family for family in shipped()}


def plain(block: tree.Block) -> str:
    """The canonical text of a block, without comments."""
    return " ".join(
        " ".join(line.split())
        for line in format_document(tree.Document((block,))).splitlines()
        if not line.lstrip().startswith("#")
    )


def said(block: tree.ModelBlock | tree.LayoutBlock) -> Iterator[str]:
    """The lines of a block, each statement about one thing."""
    configs: list[tree.ConfigStatement] = []
    for item in block.statements:
        bare = type(item)(**{**_fields(item), "trivia": tree.NO_TRIVIA})
        if isinstance(bare, tree.PlaceStatement):
            for axis in bare.axes:
                yield _line(tree.PlaceStatement((axis,), bare.placement))
        elif isinstance(bare, tree.ConfigStatement):
            before = [other.name.text for other in configs if depend(bare, other)]
            yield _line(bare) + (f"  # after {', '.join(sorted(before))}" if before else "")
            configs.append(bare)
        else:
            yield _line(bare)


def depend(one: tree.ConfigStatement, other: tree.ConfigStatement) -> bool:
    """Whether the order of two lines may mean something: one is read with the value of the other,
    or both write one key; not where one of them is of a size that is spelled as here.
    """
    plain = [isinstance(x.value, Variable) for x in (one, other)]
    spelled = [x.value == Variable(x.name.text) for x in (one, other)]
    if any(spelled) and not all(plain):
        return False
    is_read = one.name.text in names(other.value) or other.name.text in names(one.value)
    return is_read or bool(written(one.value) & written(other.value))


def written(value: Expression) -> set[str]:
    """The keys that are written from what a line is about."""
    if isinstance(value, Unary):
        return written(value.operand)
    if isinstance(value, Binary) and value.operator in ("or", "=="):
        return written(value.left)
    return set(names(value))


def _fields(item: tree.Statement) -> dict[str, object]:
    return {name: getattr(item, name) for name in item.__slots__}


def _line(item: tree.Statement) -> str:
    holder = tree.LayoutBlock(tree.Word("x"), None, (item,))  # type: ignore[arg-type]
    return " ".join(plain(holder).split()[3:-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_means(name: str, golden: Callable[[str, str], None]) -> None:
    out = []
    blocks = FAMILIES[name].document.blocks
    for block in (*FAMILIES[name].document.models, *FAMILIES[name].document.layouts):
        empty = plain(type(block)(**{**_fields(block), "statements": (), "trivia": tree.NO_TRIVIA}))
        out += [empty.removesuffix(" }"), *(f"    {line}" for line in sorted(said(block))), "}"]
    assert len(blocks) == len({block.name.text for block in blocks[1:]}) + 1
    golden(f"layouts/{name}.ucl", "\n".join(out) + "\n")


TEXTS = sorted(
    [
        path
        for folder in (files("reshard") / "layouts" / "files", files("reshard") / "layouts")
        for path in folder.iterdir()
        if path.name.endswith(".ucl") and path.name != "shared.ucl"  # it has no layout
    ]
    + [files("reshard") / "formats" / "megatron" / "description.ucl"],
    key=lambda path: path.name,
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_what_ships_is_right(path: Traversable) -> None:
    """It is not checked again at every start."""
    document = parse(path.read_text(encoding="utf-8"), path.name)
    assert check(document, models=missing_models(document)) == ()
