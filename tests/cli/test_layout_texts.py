"""`reshard layout show NAME` and `reshard layouts NAME`: texts, as written and written out."""

from __future__ import annotations

from pathlib import Path

from command_line import Case, Run

from reshard.language.library import shipped_text
from torch_trees import counted, write_tree

OWN = """\
# Of one rank.
layout one {
    mesh tp

    "**.w" = [rows over tp, ...]  # cut
}

layout other like one whole {
    "**.b" = [...]
}
"""
WRITTEN_OUT = """\
layout other {
    "**.w" = [rows, ...]  # cut
    "**.b" = [...]
}
"""


def test_the_text_of_a_model_that_ships(run: Run) -> None:
    said = run("layouts", "mixtral")
    assert (said.code, said.err) == (0, "")
    assert said.out == shipped_text("mixtral")


def test_no_such_model(run: Run) -> None:
    said = run("layouts", "mixtrl")
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        "error[unknown-model-name]: there is no built-in model `mixtrl`\n"
        "  = note: known are `bert`, `deepseek`, `gemma`, `gpt`, `llama`, `mixtral`, `olmo2`, and "
        "`qwen_moe`\n"
        "  = help: did you mean `mixtral`?\n"
    )


def test_a_layout_of_a_file(run: Run, here: Path) -> None:
    (here / "own.ucl").write_text(OWN, encoding="utf-8")
    assert run("layout", "show", "own.ucl").out == OWN
    assert run("layout", "show", "own.ucl#other", "--expanded").out == WRITTEN_OUT
    written = OWN[OWN.index("layout other") :]
    assert run("layout", "show", "own.ucl#other").out == written


def test_no_such_layout(run: Run) -> None:
    said = run("layout", "show", "bert#hff")
    assert said.code == 3
    assert said.err.startswith("error[unknown-layout]: `bert.ucl` has no layout `hff`\n")


def test_a_layout_that_ships_written_out_is_right(run: Run, here: Path) -> None:
    said = run("layout", "show", "llama", "--expanded")
    (here / "whole.ucl").write_text(said.out, encoding="utf-8")
    assert run("layout", "check", "whole.ucl").code == 0
    assert run("layout", "show", "whole.ucl", "--expanded").out == said.out


def test_a_checkpoint_that_has_the_name_of_a_model(run: Run, case: Case, here: Path) -> None:
    (here / "llama").symlink_to(case("z1_bf16_dp4_tied"))
    said = run("layout", "show", "llama", "--expanded")
    assert (said.code, said.err) == (0, "")
    assert said.out == run("layout", "show", "z1_bf16_dp4_tied").out


def test_a_file_whose_states_are_withheld_shows_its_layout(run: Run, here: Path) -> None:
    names = {"b": counted(2), "a": counted(2)}
    optimizer = {
        "state": {at: {"exp_avg": counted(2, start=at)} for at in range(2)},
        "param_groups": [{"params": [0, 1]}],
    }
    write_tree(here / "x.pt", {"model": names, "optimizer": optimizer})
    said = run("layout", "show", "x.pt")
    assert (said.code, said.err) == (0, "")
    (here / "own.ucl").write_text(said.out, encoding="utf-8")
    said = run("convert", "x.pt", "u", "--to", "universal")
    assert (said.code, said.err.partition("]")[0]) == (4, "error[ambiguous-optimizer-ids")
    said = run("convert", "x.pt", "u", "--to", "universal", "--layout", "own.ucl")
    assert (said.code, said.err.partition("]")[0]) == (0, "warning[order-assumed")
