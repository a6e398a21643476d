"""At least three wrong inputs for each command, and everything that it says about them."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Case, Golden, Run

WRONG = {
    # name: (exit code, command line)
    "inspect-missing": (4, "inspect z1_bf16_dp4_tide"),
    "inspect-no-checkpoint": (4, "inspect empty"),
    "inspect-file": (4, "inspect z1_bf16_dp4_tied/latest"),
    "inspect-above": (4, "inspect ."),
    "inspect-step": (4, "inspect z1_bf16_dp4_tied --step global_step30"),
    "inspect-layout": (3, "inspect z1_bf16_dp4_tied --layout narrow.ucl"),
    "inspect-layout-missing": (3, "inspect z1_bf16_dp4_tied --layout narow.ucl"),
    "inspect-layout-name": (3, "inspect z1_bf16_dp4_tied --layout two.ucl"),
    "inspect-set": (2, "inspect z1_bf16_dp4_tied --set layers=four"),
    "convert-no-target": (2, "convert z1_bf16_dp4_tied out"),
    "convert-unknown-target": (5, "convert z1_bf16_dp4_tied out --to universl"),
    "convert-exists": (7, "convert z1_bf16_dp4_tied full --to universal"),
    "convert-foreign": (7, "convert z1_bf16_dp4_tied full --to universal --force"),
    "convert-onto-itself": (7, "convert z1_bf16_dp4_tied z1_bf16_dp4_tied --to universal --force"),
    "convert-inside": (7, "convert z1_bf16_dp4_tied z1_bf16_dp4_tied/out --to universal"),
    "convert-parent": (7, "convert z1_bf16_dp4_tied no/out --to universal"),
    "convert-memory": (5, "convert z1_bf16_dp4_tied out --to universal --max-memory 20MB"),
    "convert-memory-size": (2, "convert z1_bf16_dp4_tied out --to universal --max-memory lots"),
    "convert-threads": (2, "convert z1_bf16_dp4_tied out --to universal --threads 0"),
    "convert-drift": (2, "convert z1_bf16_dp4_tied out --to universal --on-drift last"),
    "plan-target": (5, "plan z1_bf16_dp4_tied --to deepspeed:zero=2,dp"),
    "plan-option": (5, "plan z1_bf16_dp4_tied --to deepspeed:zero=2,pd=2"),
    "plan-option-value": (5, "plan z1_bf16_dp4_tied --to deepspeed:zero=2,dp=none"),
    "plan-zero": (5, "plan z1_bf16_dp4_tied --to deepspeed:zero=4,dp=2"),
    "plan-state": (2, "plan z1_bf16_dp4_tied --to universal --states params,exp_avgs"),
    "plan-dtype": (5, "plan z1_bf16_dp4_tied --to universal --dtype bf61"),
    "plan-dtype-state": (2, "plan z1_bf16_dp4_tied --to universal --dtype momentum=bf16"),
    "plan-dtype-twice": (5, "plan z1_bf16_dp4_tied --to universal --dtype bf16,param=fp32"),
    "plan-place": (5, "plan z1_bf16_dp4_tied --to universal --names hf --place layer=1,2,1"),
    "plan-place-how": (5, "plan z1_bf16_dp4_tied --to universal --names hf --place layer=pp:x"),
    "plan-place-axis": (
        5,
        "plan z1_bf16_dp4_tied --to universal --names hf --set head_dim=10 --place lager=pp:1,1",
    ),
    "plan-place-mesh": (
        5,
        "plan z1_bf16_dp4_tied --to universal --names megatron --set head_dim=10"
        " --place layer=dp2:1,1",
    ),
    "plan-unsolved": (3, "plan z1_bf16_dp4_tied --to megatron:tp=2"),
    "plan-place-unused": (5, "plan z1_bf16_dp4_tied --to universal --place layer=pp:1,1"),
    "plan-file-size": (5, "plan z1_bf16_dp4_tied --to deepspeed:zero=2,dp=2 --max-file-size 1GB"),
    "plan-nothing": (2, "plan --to universal"),
    "plan-from": (2, "plan z1_bf16_dp4_tied --from hf --to universal"),
    "plan-simulate-source": (2, "plan z1_bf16_dp4_tied --simulate config.json --to universal"),
    "plan-simulate-no-target": (2, "plan --simulate config.json"),
    "plan-simulate-missing": (4, "plan --simulate config.json --to universal"),
    "plan-simulate-step": (2, "plan --simulate config.json --to universal --step 3"),
    "plan-simulate-memory": (2, "plan --simulate config.json --to hf --rank-memory 8GB"),
    "plan-ranks-target": (2, "plan --simulate config.json --ranks 8 --to hf"),
    "plan-ranks-states": (2, "plan --simulate config.json --ranks 8 --states weights"),
    "verify-missing": (4, "verify z1_bf16_dp4_tied elsewhere"),
    "verify-state": (2, "verify z1_bf16_dp4_tied --states momentum"),
    "diff-missing": (4, "diff z1_bf16_dp4_tied elsewhere"),
    "diff-state": (2, "diff z1_bf16_dp4_tied --states momentum"),
    "diff-three": (2, "diff z1_bf16_dp4_tied full empty"),
    "diff-names": (3, "diff z1_bf16_dp4_tied z1_bf16_dp4_tied --model lama"),
    "roundtrip-no-target": (2, "roundtrip z1_bf16_dp4_tied"),
    "roundtrip-missing": (4, "roundtrip elsewhere --via universal"),
    "roundtrip-target": (5, "roundtrip z1_bf16_dp4_tied --via universal --via deepsped:dp=2"),
    "roundtrip-state": (2, "roundtrip z1_bf16_dp4_tied --via universal --states exp_avgs"),
    "roundtrip-sample": (2, "roundtrip z1_bf16_dp4_tied --via universal --sample 0"),
    "roundtrip-work": (7, "roundtrip z1_bf16_dp4_tied --via universal --work elsewhere"),
    "roundtrip-junit": (7, "roundtrip z1_bf16_dp4_tied --via universal --junit no/report.xml"),
    "layout-show-missing": (4, "layout show elsewhere"),
    "layout-show-fit": (3, "layout show z1_bf16_dp4_tied --layout narrow.ucl"),
    "layout-show-flag": (2, "layout show z1_bf16_dp4_tied --stepp 3"),
    "layout-check-syntax": (3, "layout check broken.ucl"),
    "layout-check-faults": (3, "layout check faults.ucl"),
    "layout-check-folder": (3, "layout check empty"),
    "layout-fmt-syntax": (3, "layout fmt broken.ucl"),
    "layout-fmt-missing": (3, "layout fmt brokn.ucl"),
    "layout-fmt-bytes": (3, "layout fmt bytes.ucl"),
    "explain-code": (2, "explain coverage-gaps"),
    "explain-nothing-near": (2, "explain 42"),
    "explain-two": (2, "explain syntax usage"),
    "no-such-command": (2, "convrt a b"),
}

FILES = {
    "narrow.ucl": 'layout narrow {\n    mesh dp\n    "model.layers.**" = [...]\n}\n',
    "two.ucl": 'layout one {\n    "**" = [...]\n}\n\nlayout two {\n    "**" = [...]\n}\n',
    "broken.ucl": 'layout broken {\n    mesh tp dp\n    "**" = [rows over tp, ...]\n}\n',
    "faults.ucl": 'layout faults {\n    mesh tp\n    "a" = [rows over pt]\n    "b" = [x x]\n}\n',
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_explained(
    name: str, run: Run, case: Case, here: Path, golden: Golden
) -> None:
    code, line = WRONG[name]
    case("z1_bf16_dp4_tied")
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full" / "letter.txt").write_text("mine", encoding="utf-8")
    (here / "bytes.ucl").write_bytes(b"layout \xff {}")
    for file, text in FILES.items():
        (here / file).write_text(text, encoding="utf-8")
    before = sorted(path.name for path in here.iterdir())
    said = run(*line.split())
    text = f"$ reshard {line}\n{said.err.replace(str(here), '...')}"
    golden(f"wrong/{name}.txt", text)
    assert (said.code, said.out) == (code, "")
    assert [path for path in sorted(p.name for p in here.iterdir()) if "lock" not in path] == before
