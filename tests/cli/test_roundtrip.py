"""`reshard roundtrip`: what it proves of real checkpoints, and what it says where it cannot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from command_line import Case, Golden, Run

WAYS = ("--via", "deepspeed:zero=2,dp=3", "--via", "deepspeed:zero=3,dp=4")


def test_what_comes_back(run: Run, case: Case, golden: Golden) -> None:
    said = run("roundtrip", case("z1_bf16_dp4_tied"), *WAYS)
    assert said.code == 0
    golden("roundtrip/equal.txt", said.out + said.err)


def test_a_sample_says_what_it_is(run: Run, case: Case, golden: Golden) -> None:
    words = ("--via", "universal", "--states", "param,exp_avg", "--sample", "3")
    said = run("roundtrip", case("z1_bf16_dp4_tied"), *words)
    assert (said.code, said.err) == (0, "")
    golden("roundtrip/sample.txt", said.out)


def test_nothing_stays_behind(run: Run, case: Case, here: Path) -> None:
    (here / "work").mkdir()
    for how in ((), ("--materialize",)):
        words = ("--via", "deepspeed:zero=1,dp=2", "--work", "work", "--quiet", *how)
        said = run("roundtrip", case("z1_bf16_dp4_tied"), *words)
        assert (said.code, said.out, said.err) == (0, "", "")
        assert list((here / "work").iterdir()) == []


def test_a_report_for_continuous_integration(run: Run, case: Case, here: Path) -> None:
    said = run("roundtrip", case("z1_bf16_dp4_tied"), *WAYS, "--junit", "report.xml")
    assert said.code == 0
    root = ElementTree.parse(here / "report.xml").getroot()
    assert float(root.attrib.pop("time")) > 0
    assert root.attrib == {
        "name": "reshard roundtrip",
        "tests": "21",
        "failures": "0",
        "errors": "0",
    }
    first = root[0]
    assert first.attrib["name"] == "via deepspeed:zero=2,dp=3"
    assert [item.attrib["name"] for item in first] == [
        "read back",
        "param",
        "master",
        "exp_avg",
        "exp_avg_sq",
        "step",
        "training state",
    ]
    assert sorted(path.name for path in here.iterdir()) == ["report.xml", "z1_bf16_dp4_tied"]


def test_a_setting_that_is_not_kept_is_a_failure_if_asked(run: Run, case: Case) -> None:
    words = ("roundtrip", case("z1_bf16_dp4_tied"), "--via", "deepspeed:zero=3,dp=2", "--json")
    found = json.loads(run(*words).out)
    assert found["ok"]
    assert found["ways"][0]["facts"] == [
        {"path": "training.state.clip_grad", "fate": "not kept", "a": 1.0, "b": None}
    ]
    said = run(*words, "--strict")
    assert (said.code, json.loads(said.out)["ok"]) == (6, False)


@pytest.mark.parametrize("how", [(), ("--materialize",)], ids=["planned", "written"])
def test_both_ways_to_read_back_find_the_same(how: tuple[str, ...], run: Run, case: Case) -> None:
    words = ("--via", "deepspeed:zero=1,dp=3,tp=1", *how, "--json")
    found = json.loads(run("roundtrip", case("toytp_tp2_dp2_z1_fp32"), *words).out)
    way = found["ways"][0]
    assert (found["ok"], found["materialized"]) == (True, bool(how))
    assert way["mismatches"] == way["back"] == way["lost"] == way["faults"] == []
    assert way["tensors"] == 90
