"""docs/manifest.schema.json says what the code writes and reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from universal_source import arrange, convert, tp_catalog

from reshard.dtypes import DType
from reshard.formats.universal import read_manifest
from reshard.formats.universal.manifest import VERSION
from reshard.formats.universal.read import read

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def schema() -> Any:
    """The schema, sound itself."""
    value = json.loads((DOCS / "manifest.schema.json").read_text(encoding="ascii"))
    Draft202012Validator.check_schema(value)
    return value


def test_what_is_written_satisfies_it(schema: Any, tmp_path: Path) -> None:
    validator = Draft202012Validator(schema)
    convert(arrange(tp_catalog(tmp_path / "src", config={"n": 1})), tmp_path / "one")
    convert(arrange(read(tmp_path / "one")), tmp_path / "two", states=("param",))
    for name in ("one", "two"):
        value = json.loads((tmp_path / name / "manifest.json").read_text(encoding="ascii"))
        assert [error.message for error in validator.iter_errors(value)] == []


def test_it_asks_for_the_keys_that_the_reader_asks_for(schema: Any) -> None:
    assert schema["required"] == list(read_manifest.KEYS)
    assert set(schema["properties"]) == set(read_manifest.KEYS)
    assert schema["properties"]["version"] == {"const": VERSION}
    for name, keys in (
        ("tensor", read_manifest.TENSOR_KEYS),
        ("tensor_file", read_manifest.TENSOR_FILE_KEYS),
        ("other_file", read_manifest.OTHER_FILE_KEYS),
    ):
        assert schema["$defs"][name]["required"] == list(keys)
        assert set(schema["$defs"][name]["properties"]) == set(keys)


def test_it_has_the_element_types_of_the_code(schema: Any) -> None:
    assert schema["$defs"]["dtype"]["enum"] == [item.value for item in DType]


INSIDE = ("a", "a/b", "a.b-c", "..a", "a..", ".a", "x" * 250)
OUTSIDE = ("", "/a", "a/", "a//b", ".", "..", "./a", "a/..", "a/../b", "a\\b", "x" * 251)


@pytest.mark.parametrize("path", [*INSIDE, *OUTSIDE, "manifest.json"])
def test_its_paths_are_those_that_the_reader_takes(path: str, schema: Any) -> None:
    rule = schema["$defs"]["path"]
    assert Draft202012Validator(rule).is_valid(path) == (path in INSIDE)
    assert read_manifest.is_inside(path) == (path in INSIDE)


def test_the_page_names_every_key(schema: Any) -> None:
    page = (DOCS / "universal-format.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([a-z_0-9]+)`", page))
    keys = set(schema["properties"])
    for part in ("tensor", "tensor_file", "other_file", "record"):
        keys |= set(schema["$defs"][part]["properties"])
    keys |= set(schema["properties"]["training"]["properties"])
    assert keys <= names
