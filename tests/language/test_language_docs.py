"""The language's pages hold what they say: examples are checked, messages are compared in full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reshard.errors import ReshardError, render_all
from reshard.language import compile_layout, evaluate, format_document, parse
from reshard.language.check import check
from reshard.language.library import missing_models

DOCS = Path(__file__).resolve().parents[2] / "docs"

CODES = [
    "ambiguous-atom",
    "axes-apart",
    "axis-missing",
    "axis-size",
    "axis-twice",
    "bad-place",
    "circular-layout",
    "cut-dimension",
    "duplicate-name",
    "duplicate-place",
    "duplicate-rule",
    "inexact-division",
    "layout-kind",
    "local-index",
    "mesh-axis-twice",
    "name-pattern",
    "no-bias",
    "nested-sum",
    "not-obeyed",
    "one-way-config",
    "split-sizes",
    "syntax",
    "unknown-atom",
    "unknown-axis",
    "unknown-layout",
    "unknown-model",
    "unknown-name",
    "unlabelled-part",
    "unstored-atom",
    "unused-config",
    "wrong-type",
]

_BLOCK = re.compile(
    r"^```ucl(?: error=(?P<code>[a-z-]+)| file=\S+)?\n(?P<text>.*?)^```$", re.M | re.S
)


def message(text: str) -> str:
    """What reshard says about a text: the first phase that finds something speaks."""
    try:
        document = parse(text, "example.ucl")
        found = check(document)
        if found:
            return render_all(found)
        layout = compile_layout(document)
        for axis in layout.model.axes.values() if layout.model else ():
            if axis.size is not None:
                evaluate(axis.size, {"num_attention_heads": 8})
    except ReshardError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("code", CODES)
def test_error_page(code: str) -> None:
    page = (DOCS / "errors" / f"{code}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ .*$", page, re.M)
    assert headings == [f"# {code}", "## What", "## Why", "## Example", "## Fix"]
    example = re.search(r"^```ucl\n(.*?)^```\n\n```text\n(.*?)\n```$", page, re.M | re.S)
    assert example is not None
    assert message(example[1]) == example[2]
    assert f"[{code}]" in example[2].split(":")[0]


def _blocks() -> list[tuple[str | None, str]]:
    pages = ("language.md", "building-a-layout.md", "adding-a-model.md")
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in pages)
    return [(found["code"], found["text"]) for found in _BLOCK.finditer(text)]


@pytest.mark.parametrize(("code", "text"), _blocks())
def test_language_page(code: str | None, text: str) -> None:
    said = message(text) if code else ""
    if code is not None:
        assert said.startswith(f"error[{code}]: ")
        return
    document = parse(text)
    models = missing_models(document)
    assert check(document, models=models) == ()
    for layout in document.layouts:
        compile_layout(document, layout.name.text, models=models)
    assert parse(format_document(document)) == document


def test_language_page_has_examples() -> None:
    codes = [code for code, _ in _blocks()]
    assert codes.count(None) >= 6
    assert len(set(codes)) >= 4
