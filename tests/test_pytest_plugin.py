"""The pytest plugin: round trips as test items, and the fixture."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard import pytest_plugin

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent
NOT_TWICE = ("-p", "no:reshard", "-p", "no:cacheprovider")  # an installed reshard brings it too


@pytest.fixture
def source(fixture_checkpoint: Callable[[str], Path]) -> str:
    """A checkpoint."""
    return str(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt")


@pytest.fixture(autouse=True, scope="module")
def _imported(fixture_checkpoint: Callable[[str], Path]) -> None:
    """Import what is used: a session in this process forgets what was imported during it."""
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    found = reshard.roundtrip(source, ["deepspeed:zero=3,dp=2", "universal"], sample=1, strict=True)
    assert found.to_text()
    with pytest.raises(reshard.ReshardError):
        reshard.open("nowhere")


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    """A session of its own, with the plugin."""
    return pytester.runpytest_inprocess(*NOT_TWICE, *words, plugins=[pytest_plugin])


def test_the_plugin_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert declared["project"]["entry-points"]["pytest11"] == {"reshard": pytest_plugin.__name__}


def test_each_kind_of_state_is_a_test(pytester: pytest.Pytester, source: str) -> None:
    words = ("--via", "deepspeed:zero=2,dp=2", "--reshard-states", "param,exp_avg")
    result = run(pytester, "-v", "--reshard", source, *words)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            f"reshard {source}::via deepspeed:zero=2,dp=2: {case} PASSED*"
            for case in ("read back", "param", "exp_avg", "training state")
        ]
    )


def test_several_targets_are_a_way_more(pytester: pytest.Pytester, source: str) -> None:
    via = ("--via", "universal", "--via", "deepspeed:zero=1,dp=3", "--reshard-sample", "2")
    words = ("--reshard", source, *via, "-k", "training and then")
    result = run(pytester, *words)
    result.assert_outcomes(passed=1, deselected=20)


def test_what_is_lost_fails_its_own_test(pytester: pytest.Pytester, source: str) -> None:
    via = ("--via", "deepspeed:zero=3,dp=2", "--reshard-strict")
    result = run(pytester, "--reshard", source, *via)
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "1 values changed or not kept",
            "",
            "not kept: training.state.clip_grad: 1.0",
        ]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--via", "universal"), "a round trip needs --reshard SRC too"),
        (("--reshard", "SRC"), "a round trip needs --via TARGET too"),
        (
            ("--reshard", "SRC", "--via", "univers"),
            "error[[]unknown-target[]]: there is no target format `univers`",
        ),
    ],
    ids=["no-source", "no-target", "unknown"],
)
def test_a_wrong_command_line_is_explained(
    words: tuple[str, ...], said: str, pytester: pytest.Pytester, source: str
) -> None:
    words = tuple(source if word == "SRC" else word for word in words)
    result = run(pytester, *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said}"])


def test_a_source_that_cannot_be_read_fails_and_the_others_go_on(
    pytester: pytest.Pytester, source: str
) -> None:
    words = ("--reshard", "nowhere", "--reshard", source, "--via", "universal")
    result = run(pytester, *words)
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["error[[]source-missing[]]: there is no folder `nowhere`"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_target_that_is_not_possible_fails_once_and_the_others_go_on(
    pytester: pytest.Pytester, source: str
) -> None:
    words = ("--reshard", source, "--via", "megatron:tp=3,pp=9", "--via", "universal")
    result = run(pytester, *words)
    result.assert_outcomes(passed=7, failed=1, skipped=13)


def test_without_options_nothing_is_added(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    run(pytester).assert_outcomes(passed=1)


def test_the_fixture(pytester: pytest.Pytester, source: str) -> None:
    pytester.makepyfile(
        f"""
        def test_it_comes_back(reshard_roundtrip):
            found = reshard_roundtrip({source!r}, "deepspeed:zero=1,dp=2", sample=4)
            assert found.ways[0].tensors == 4

        def test_it_does_not(reshard_roundtrip):
            reshard_roundtrip({source!r}, "deepspeed:zero=3,dp=2", strict=True)
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["via deepspeed:zero=3,dp=2: 1 value changed or not kept"])
