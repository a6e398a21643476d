"""Several checks in one command: what cannot be checked is an entry, and the others go on."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from command_line import Case, Run

import reshard


def entries(report: Path) -> list[tuple[str, str, str, str]]:
    """Suite, case, what became of it, and its headline, for each case that did not pass."""
    root = ElementTree.parse(report).getroot()
    counted = {"failure": int(root.attrib["failures"]), "error": int(root.attrib["errors"])}
    found = [
        (suite.attrib["name"], case.attrib["name"], outcome.tag, outcome.attrib["message"])
        for suite in root
        for case in suite
        for outcome in case
    ]
    for tag, count in counted.items():
        assert count == sum(item[2] == tag for item in found)
    return found


def spoil(file: Path) -> None:
    """Turn one bit of the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_source_that_cannot_be_read_is_an_error_and_the_others_go_on(
    run: Run, case: Case, here: Path
) -> None:
    good = case("z1_bf16_dp4_tied")
    words = ("roundtrip", "nowhere", good, "--via", "universal", "--sample", "1")
    said = run(*words, "--junit", "report.xml")
    assert said.code == 4
    assert said.out.startswith(f"round trip of {good}\n")
    assert said.out.endswith("\n2 checks: 1 passed, 1 could not be checked\n")
    assert "nowhere could not be checked\nerror[source-missing]: there is no folder" in said.err
    assert entries(here / "report.xml") == [
        ("nowhere", "read", "error", "there is no folder `nowhere`")
    ]
    document = json.loads(run(*words, "--json").out)
    assert [(item["path"], item["ok"], item["exit_code"]) for item in document["checks"]] == [
        ("nowhere", False, 4),
        (good, True, 0),
    ]


def test_a_target_that_is_not_possible_is_an_error_and_the_others_go_on(
    run: Run, case: Case, here: Path
) -> None:
    via = ("--via", "deepspeed:zero=9", "--via", "universal", "--sample", "1")
    said = run("roundtrip", case("z1_bf16_dp4_tied"), *via, "--junit", "report.xml")
    assert said.code == 5
    assert "via deepspeed:zero=9: not possible\n\nerror[" in said.out
    assert "via universal: equal bit for bit\n" in said.out
    assert said.out.endswith("\nfailed: 1 of 2 round trips, 1 of them not possible\n  in 0.10 s\n")
    (found,) = entries(here / "report.xml")
    assert found[:3] == ("via deepspeed:zero=9", "target", "error")


def test_a_target_that_is_the_only_one_and_not_possible_is_the_answer(
    run: Run, case: Case, here: Path
) -> None:
    words = ("--via", "deepspeed:zero=9", "--junit", "report.xml")
    said = run("roundtrip", case("z1_bf16_dp4_tied"), *words)
    assert (said.code, said.out) == (5, "")
    assert said.err.startswith("error[")
    assert len(entries(here / "report.xml")) == 1


def test_a_difference_counts_more_than_what_could_not_be_checked(
    run: Run, case: Case, here: Path
) -> None:
    good = case("z1_bf16_dp4_tied")
    reshard.convert(here / good, here / "bad", "universal")
    spoil(next((here / "bad").rglob("*.safetensors")))
    said = run("verify", "nowhere", good, "bad", "--each", "--junit", "report.xml")
    assert said.code == 6
    assert said.out.endswith("\n3 checks: 1 passed, 1 failed, 1 could not be checked\n")
    assert [item[:3] for item in entries(here / "report.xml")] == [
        ("nowhere", "read", "error"),
        ("bad", "as it was written", "failure"),
    ]


def test_one_is_compared_with_each_of_the_others(run: Run, case: Case, here: Path) -> None:
    good = case("z1_bf16_dp4_tied")
    reshard.convert(here / good, here / "a", "universal")
    reshard.convert(here / good, here / "b", "universal", states="weights")
    said = run("verify", good, "a", "b", "--junit", "report.xml")
    assert said.code == 6
    assert said.out.endswith("\n2 checks: 1 passed, 1 failed\n")
    assert [item[:3] for item in entries(here / "report.xml")] == [
        (f"{good} and b", "equal bit for bit", "failure")
    ]


@pytest.mark.parametrize("command", ["verify", "roundtrip"])
def test_a_report_is_written_however_the_command_ends(
    command: str, run: Run, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("a slip of ours")

    words = [command, "somewhere", *(("--via", "universal") if command == "roundtrip" else ())]
    monkeypatch.setattr(f"reshard.api.{command}", interrupt)
    assert run(*words, "--junit", "stopped.xml").code == 130
    assert [item[2:] for item in entries(here / "stopped.xml")] == [("error", "interrupted")]
    monkeypatch.setattr(f"reshard.api.{command}", fail)
    assert run(*words, "--junit", "bug.xml").code == 1
    assert [item[2:] for item in entries(here / "bug.xml")] == [
        ("error", "this is a bug in reshard: RuntimeError: a slip of ours")
    ]
    # A command line that is wrong ends before there is a command.
    assert run(*words, "--nonsense", "--junit", "usage.xml").code == 2
    assert [item[2:] for item in entries(here / "usage.xml")] == [
        ("error", "no such option: --nonsense")
    ]


def test_a_workflow_of_github_is_told_where_it_looks(
    run: Run, case: Case, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (here / "own.ucl").write_text('layout x {\n    "a" = [b, b]\n}\n', encoding="utf-8")
    said = run("layout", "check", "own.ucl")
    assert said.err.splitlines()[-1] == (
        "::error file=own.ucl,line=2,col=15,title=reshard%3A axis-twice::"
        "axis `b` stands twice in one rule"
        "%0Agive each axis of a tensor a name of its own; `_` is a new one each time"
    )
    reshard.convert(here / case("z1_bf16_dp4_tied"), here / "bad", "universal")
    spoil(next((here / "bad").rglob("*.safetensors")))
    said = run("verify", "bad")
    assert said.err == ("::error title=reshard%3A difference::bad: damaged: 1 fault in bad\n")
