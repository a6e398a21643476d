"""Writes what is known of the shipped texts beforehand: `python -m reshard.formats.make_shipped`.

`shipped_index` says which types of models and which names a layout has, and which files a
description asks for, so that those that a checkpoint may be in are known before one is made.
`shipped_trees` has every block of every text, parsed, and of the texts that the formats make for a
checkpoint whose tensors are whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reshard.formats.dcp import read as dcp
from reshard.formats.deepspeed.describe import layout_text
from reshard.formats.deepspeed.universal_form import read as universal_form
from reshard.formats.hf import read as hf
from reshard.formats.megatron import read_dist
from reshard.language import format_document, library, parser, tree
from reshard.language.blocks import Blocks, ParsedBlocks, block_name
from reshard.language.compile import compile_layouts
from reshard.language.compiled import encoded
from reshard.language.expand import expand
from reshard.language.expand_models import Known
from reshard.language.layout import FileRule, Layout
from reshard.language.pattern import IndexSlot, NamePattern

PACKAGE = Path(__file__).parents[1]
LANGUAGE = PACKAGE / "language"
_MADE = '"""Made by `python -m reshard.formats.make_shipped`; not edited by hand.'
_INDEX = f"""{_MADE}

MODELS: of every model the file, and of every layout the types of models and the forms of its names.
DESCRIPTIONS: of every description of files its name, and the names of the files that must be there.
\"\"\"

Texts = tuple[str, ...]
"""
_TREES = f"""{_MADE}

The blocks of texts, as `compiled` encodes them: TREES by file, TEXTS of formats by the text.
\"\"\"

TREES: dict[str, dict[tuple[str, str, str], str]] = """


def trees_text() -> str:
    """The text of `shipped_trees.py` for the layouts as they are now."""
    rows = [_TREES + "{"]
    for file in _files():
        document = parser.parse(_text(file), file)
        assert not document.closing, f"{file}: comments at the end of a text would be lost"
        rows.append(f"    {file!r}: {{")
        rows += (f"        {block_name(x)!r}: {encoded(x)!r}," for x in document.blocks)
        rows.append("    },")
    rows += ["}", "TEXTS: dict[str, dict[tuple[str, str, str], str]] = {"]
    for text in own_texts():
        document = parser.parse(text)
        trees = {block_name(block): encoded(block) for block in document.blocks}
        rows.append(f"    {text!r}: {trees!r},")
    return "\n".join(rows) + "\n}\n"


def own_texts() -> tuple[str, ...]:
    """The texts of formats that cut nothing by rank, and what each is in a universal checkpoint."""
    plain = (
        dcp.LAYOUT,
        hf.LAYOUT,
        read_dist.LAYOUT,
        read_dist.FSDP_LAYOUT,
        universal_form.LAYOUT,
        layout_text(("pp", "tp", "dp"), {"any": "[...]"}, local={}),
    )
    return (*plain, *(_of_universal(text) for text in plain if "optional" in text))


def _of_universal(text: str) -> str:
    document = parser.parse(text)
    (block,) = document.layouts
    rules = [
        replace(item, optional=False) if isinstance(item, tree.RuleStatement) else item
        for item in block.statements
    ]
    return format_document(replace(document, blocks=(replace(block, statements=tuple(rules)),)))


def index_text() -> str:
    """The text of `shipped_index.py`; it is right if `shipped_trees.py` is."""
    models = [f"{_INDEX}MODELS: dict[str, tuple[str, dict[str, tuple[Texts, Texts]]]] = {{"]
    descriptions = ["DESCRIPTIONS: dict[str, tuple[str, tuple[Texts, ...]]] = {"]
    written = {file: parser.parse(_text(file), file) for file in _files()}
    texts = list(map(ParsedBlocks, written.values()))

    def home(kind: str, name: str) -> Blocks | None:
        return next((blocks for blocks in texts if name in blocks.names(kind)), None)

    known = Known(lambda name: home("model", name), lambda name: home("config", name))
    for file, short in written.items():
        document = expand(short, known)
        made = compile_layouts(document) if document.layouts else {}
        for model in document.models:
            name = model.name.text
            models.append(f"    {name!r}: ({file!r}, {{")
            for block in document.layouts:
                if block.model is not None and block.model.text == name:
                    layout = block.name.text
                    item = (library.types_in(block.when), _forms(made[layout]))
                    models.append(f"        {layout!r}: {item!r},")
            models.append("    }),")
        if "/files/" in file:
            (only,) = made.values()
            descriptions.append(f"    {file!r}: {(only.name, _required(only.files))!r},")
    return "\n".join([*models, "}", *descriptions, "}"]) + "\n"


def _files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.ucl"))


def _text(file: str) -> str:
    return (PACKAGE / file).read_text(encoding="utf-8")


def _required(rules: Iterable[FileRule]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name.text for name in rule.names) for rule in rules if not rule.optional)


def _forms(layout: Layout) -> tuple[str, ...]:
    patterns = [*(x.pattern for x in layout.rules), *(x.pattern for x in layout.left_out)]
    return tuple(dict.fromkeys(map(_form, patterns)))


def _form(pattern: NamePattern) -> str:
    assert not pattern.wildcards, f"the index has no place for the wildcard in {pattern.text!r}"
    pieces = ("#" if isinstance(item, IndexSlot) else item for item in pattern.pieces)
    return library.name_form("".join(map(str, pieces)))


if __name__ == "__main__":
    (LANGUAGE / "shipped_trees.py").write_text(trees_text(), encoding="utf-8")
    (LANGUAGE / "shipped_index.py").write_text(index_text(), encoding="utf-8")
