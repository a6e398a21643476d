"""What the commands say about real checkpoints, 80 columns wide, in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Case, Golden, Run

from real_cases import READABLE

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "universal": "universal",
    "native": "deepspeed:zero=2,dp=2",
    "universal-form": "deepspeed-universal",
}

TWO = ("--threads", "2")  # memory depends on it


def _narrow(text: str) -> str:
    """The text, once no line is wider than a terminal but for names, which are never cut."""
    for line in text.split("\n"):
        assert len(line) <= 80 or " " not in line.strip(), line
    return text


@pytest.mark.parametrize("name", READABLE)
def test_inspect(name: str, run: Run, case: Case, golden: Golden) -> None:
    said = run("inspect", case(name))
    assert (said.code, said.err) == (0, "")
    golden(f"inspect/{name}.txt", said.out)


def test_inspect_a_universal_checkpoint(run: Run, case: Case, golden: Golden) -> None:
    assert run("convert", case("z1_bf16_dp4_tied"), "out", "--to", "universal").code == 0
    said = run("inspect", "out")
    assert (said.code, said.err) == (0, "")
    golden("inspect/universal.txt", said.out)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["z1_bf16_dp4_tied", "z3_fp32_dp2_frozen"])
def test_plan(name: str, target: str, run: Run, case: Case, golden: Golden) -> None:
    said = run("plan", case(name), "--to", TARGETS[target], *TWO)
    assert said.code == 0
    golden(f"plan/{name}-{target}.txt", said.out + said.err)


def test_plan_of_tensor_parallel_ranks(run: Run, case: Case, golden: Golden) -> None:
    said = run("plan", case("toytp_tp2_dp2_z1_fp32"), "--to", "universal", *TWO)
    assert (said.code, said.err) == (0, "")
    golden("plan/toytp.txt", said.out)


@pytest.mark.parametrize("target", TARGETS)
def test_convert(target: str, run: Run, case: Case, golden: Golden) -> None:
    said = run("convert", case("z1_bf16_dp4_tied"), "out", "--to", TARGETS[target])
    assert said.code == 0
    golden(f"convert/{target}.txt", said.out + said.err)


def test_convert_only_some_states(run: Run, case: Case, golden: Golden) -> None:
    source = case("z1_bf16_dp4_tied")
    said = run("convert", source, "out", "--to", "universal", "--states", "weights,exp_avg")
    assert (said.code, said.err) == (0, "")
    golden("convert/states.txt", said.out)
    said = run("verify", source, "out")
    assert said.code == 6
    golden("verify/states.txt", said.out)
    assert run("verify", source, "out", "--states", "weights,exp_avg").code == 0


def test_a_dry_run_says_the_plan_and_writes_nothing(run: Run, case: Case, here: Path) -> None:
    source = case("z1_bf16_dp4_tied")
    planned = run("plan", source, "--to", "universal")
    said = run("convert", source, "out", "--to", "universal", "--dry-run")
    assert said == planned
    assert sorted(path.name for path in here.iterdir()) == [source]


def test_verify(run: Run, case: Case, golden: Golden) -> None:
    source = case("z1_bf16_dp4_tied")
    assert run("convert", source, "out", "--to", "universal").code == 0
    texts = [run("verify", "out").out, run("verify", source).out, run("verify", source, "out").out]
    golden("verify/equal.txt", "\n".join(texts))


def test_verify_two_runs(run: Run, case: Case, golden: Golden) -> None:
    said = run("verify", case("z1_bf16_dp4_tied"), case("z1_bf16opt_dp2_untied"))
    assert (said.code, said.err) == (6, "")
    golden("verify/different.txt", said.out)


def test_verify_sees_a_flipped_byte(run: Run, case: Case, here: Path) -> None:
    assert run("convert", case("z1_bf16_dp4_tied"), "out", "--to", "universal").code == 0
    file = next(here.glob("out/exp_avg-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    said = run("verify", "out")
    assert said.code == 6
    assert said.out.startswith(
        "damaged: 1 fault in out\n  in 0.10 s, 4.0 MB/s\n\nerror[digest-mismatch]: "
    )
    said = run("verify", "out", "--json")
    assert said.code == 6
    document = json.loads(said.out)
    assert (document["schema"], document["ok"]) == (1, False)
    assert [item["code"] for item in document["faults"]] == ["digest-mismatch"]


def test_a_layout_that_was_shown_can_be_used(
    run: Run, case: Case, here: Path, golden: Golden
) -> None:
    source = case("toytp_tp2_dp2_z1_fp32")
    shown = run("layout", "show", source)
    assert (shown.code, shown.err) == (0, "")
    golden("layout/toytp.ucl", shown.out)
    (here / "own.ucl").write_text(shown.out, encoding="utf-8")
    checked = run("layout", "check", "own.ucl")
    assert (checked.code, checked.err) == (0, "")
    golden("layout/check.txt", checked.out)
    assert run("convert", source, "by-itself", "--to", "universal").code == 0
    own = run("convert", source, "by-layout", "--to", "universal", "--layout", "own.ucl")
    assert (own.code, own.err) == (0, "")
    assert run("verify", "by-itself", "by-layout").code == 0


def test_fmt(run: Run, here: Path) -> None:
    file = here / "odd.ucl"
    file.write_text('layout x{mesh tp "**"=[rows over tp,...]} # all\n', encoding="utf-8")
    canonical = 'layout x {\n    mesh tp\n    "**" = [rows over tp, ...]\n}  # all\n'
    assert run("layout", "fmt", "odd.ucl", "--check").code == 3
    assert run("layout", "fmt", "odd.ucl").out == canonical
    assert run("layout", "fmt", "odd.ucl", "--write").code == 0
    assert file.read_text(encoding="utf-8") == canonical
    assert run("layout", "fmt", "odd.ucl", "--check").code == 0


def test_explain_prints_the_page_of_a_code(run: Run) -> None:
    page = (ROOT / "docs" / "errors" / "coverage-gap.md").read_text(encoding="utf-8")
    for word in ("coverage-gap", "error[coverage-gap]:", "[coverage-gap]"):
        assert run("explain", word).out == page


def test_explain_lists_the_codes(run: Run) -> None:
    said = run("explain")
    assert "coverage-gap" in said.out.split("\n")
    assert json.loads(run("explain", "--json").out)["codes"] == said.out.split()


@pytest.mark.parametrize("name", ["z1_bf16_dp4_tied", "moe_ep2_dp2_z1_fp32"])
def test_an_answer_is_narrow(name: str, run: Run, case: Case) -> None:
    _narrow(run("inspect", case(name)).out)
    _narrow(run("plan", case(name), "--to", "universal").out)


def test_help_and_version_are_answers(run: Run) -> None:
    said = run("--help")
    assert (said.code, said.err) == (0, "")
    assert run("-h") == said
    assert run("--version").out.startswith("reshard")
    assert (run("--version").code, run("convert", "--help").code) == (0, 0)


def test_without_a_command_there_is_help(run: Run) -> None:
    said = run()
    assert (said.code, said.out) == (2, run("--help").out)
