"""`--json`: one document on standard output, whatever happens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest
from command_line import Case, Run

from reshard.cli.console import print_json

COMMANDS = {
    "inspect": ["inspect", "SRC"],
    "plan": ["plan", "SRC", "--to", "universal"],
    "plan-simulate": ["plan", "--simulate", "config.json", "--to", "hf", "--bandwidth", "1GB"],
    "plan-ranks": ["plan", "--simulate", "config.json", "--ranks", "8", "--rank-memory", "8GB"],
    "convert": ["convert", "SRC", "out", "--to", "universal"],
    "verify": ["verify", "SRC"],
    "diff": ["diff", "SRC"],
    "roundtrip": ["roundtrip", "SRC", "--via", "universal"],
    "layout-show": ["layout", "show", "SRC"],
    "layout-check": ["layout", "check", "own.ucl"],
    "layout-fmt": ["layout", "fmt", "own.ucl"],
    "layouts": ["layouts", "own.ucl"],
    "layouts-text": ["layouts", "llama"],
    "explain": ["explain", "syntax"],
}
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "cli.schema.json").read_text(encoding="utf-8")
)


def check(document: object, name: str) -> None:
    """Hold a document against the definition of a command in docs/cli.schema.json."""
    schema = {"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_is_one_document(command: str, run: Run, case: Case, here: Path) -> None:
    source = case("z1_bf16_dp4_tied")
    (here / "own.ucl").write_text('layout x {\n    "**" = [...]\n}\n', encoding="utf-8")
    (here / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    words = [source if word == "SRC" else word for word in COMMANDS[command]]
    said = run(*words, "--json")
    assert (said.code, said.err) == (0, "")
    document = json.loads(said.out)
    assert document["ok"] is True
    check(document, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_is_one_document(command: str, run: Run) -> None:
    words = [
        "nothing" if word in ("SRC", "own.ucl", "syntax", "llama", "config.json") else word
        for word in COMMANDS[command]
    ]
    said = run(*words, "--json")
    assert (said.code > 1, said.err) == (True, "")
    document = json.loads(said.out)
    assert document["error"]["exit_code"] == said.code
    check(document, "failure")


def test_a_wrong_command_line_is_one_document(run: Run) -> None:
    said = run("plan", "somewhere", "--json")
    assert (said.code, said.err) == (2, "")
    assert json.loads(said.out)["error"] == {
        "exit_code": 2,
        "diagnostics": [
            {
                "level": "error",
                "code": "usage",
                "headline": "missing option `--to`",
                "help": ["see `reshard plan --help`"],
            }
        ],
    }


def test_what_is_told_of_a_tensor(run: Run, case: Case) -> None:
    found = json.loads(run("inspect", case("z1_bf16_dp4_tied"), "--json").out)
    assert found["tensors"][0] == {
        "name": "model.embed_tokens.weight",
        "role": "parameter",
        "shape": [97, 40],
        "axes": found["tensors"][0]["axes"],
        "states": {
            "param": "BF16",
            "master": "F32",
            "exp_avg": "F32",
            "exp_avg_sq": "F32",
            "step": "F32",
        },
        "mesh": {},
    }
    planned = json.loads(run("plan", "z1_bf16_dp4_tied", "--to", "universal", "--json").out)
    assert planned["tensors"][0] == {
        "name": "model.embed_tokens.weight",
        "state": "param",
        "shape": [97, 40],
        "dtype": "BF16",
        "fate": "written",
        "runs": 1,
        "source_files": 1,
        "pieces": 1,
        "target_files": 1,
    }


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    commands = {item["$ref"].rpartition("/")[2] for item in SCHEMA["anyOf"]}
    assert commands == {*COMMANDS, "checks", "failure"}


def test_what_differs_follows_the_schema(run: Run, case: Case) -> None:
    one, other = case("toytp_tp2_dp2_z1_fp32"), case("z3_fp32_dp2_untied")
    for command in ("verify", "diff"):
        said = run(command, one, other, "--json")
        assert said.code == 6
        check(json.loads(said.out), command)
    via = ("--via", "deepspeed:zero=3,dp=2", "--via", "deepspeed:zero=9", "--strict")
    check(json.loads(run("roundtrip", other, *via, "--json").out), "roundtrip")
    for words in (("verify", one, "nowhere", "--each"), ("roundtrip", one, "nowhere", *via)):
        check(json.loads(run(*words, "--json").out), "checks")
    check(json.loads(run("explain", "--json").out), "explain")


def test_numbers_that_are_not_finite_are_texts(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, math.nan], "b": {"c": -math.inf}})
    assert json.loads(capfd.readouterr().out) == {
        "schema": 1,
        "ok": True,
        "a": [1.5, "NaN"],
        "b": {"c": "-Infinity"},
    }
