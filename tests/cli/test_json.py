"""`--json`: one document on standard output, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Case, Run

COMMANDS = {
    "inspect": ["inspect", "SRC"],
    "plan": ["plan", "SRC", "--to", "universal"],
    "convert": ["convert", "SRC", "out", "--to", "universal"],
    "verify": ["verify", "SRC"],
    "diff": ["diff", "SRC"],
    "roundtrip": ["roundtrip", "SRC", "--via", "universal"],
    "layout-show": ["layout", "show", "SRC"],
    "layout-check": ["layout", "check", "own.ucl"],
    "layout-fmt": ["layout", "fmt", "own.ucl"],
    "layouts": ["layouts", "own.ucl"],
    "explain": ["explain", "syntax"],
}
KEYS = {
    "inspect": "path root format version mesh files nbytes states tensors aliases training layout "
    "proof side_files nearby left oddities",
    "plan": "source target tensors files nbytes_read nbytes_written peak_nbytes proof left "
    "warnings",
    "convert": "path dry_run seconds resumed source target tensors files nbytes_read "
    "nbytes_written peak_nbytes proof left warnings",
    "verify": "a b tensors nbytes files mismatches faults checksums seconds warnings",
    "diff": "a b tensors nbytes mismatches facts copied drift",
    "roundtrip": "source states left_out sample materialized on_drift ways seconds",
    "layout-show": "layout",
    "layout-check": "path models layouts warnings",
    "layout-fmt": "text canonical",
    "layouts": "families",
    "explain": "code page",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_is_one_document(command: str, run: Run, case: Case, here: Path) -> None:
    source = case("z1_bf16_dp4_tied")
    (here / "own.ucl").write_text('layout x {\n    "**" = [...]\n}\n', encoding="utf-8")
    words = [source if word == "SRC" else word for word in COMMANDS[command]]
    said = run(*words, "--json")
    assert (said.code, said.err) == (0, "")
    document = json.loads(said.out)
    assert list(document) == ["schema", "ok", *KEYS[command].split()]
    assert (document["schema"], document["ok"]) == (1, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_is_one_document(command: str, run: Run) -> None:
    words = [
        "nothing" if word in ("SRC", "own.ucl", "syntax") else word for word in COMMANDS[command]
    ]
    said = run(*words, "--json")
    assert (said.code > 1, said.err) == (True, "")
    document = json.loads(said.out)
    assert list(document) == ["schema", "ok", "error"]
    assert document["error"]["exit_code"] == said.code
    assert [list(item)[:3] for item in document["error"]["diagnostics"]] == [
        ["level", "code", "headline"]
    ]


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
