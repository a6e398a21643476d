"""Facts of which every rank has a copy are the same everywhere, or that is told."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError
from reshard.plan.agreement import agreed, disagreements

ONE = {"groups": [{"lr": 0.01, "betas": (0.9, 0.95)}], "seed": 1, "scale": float("nan")}


def test_copies_that_agree_are_one() -> None:
    again = {"groups": [{"lr": 0.01, "betas": [0.9, 0.95]}], "seed": 2, "scale": float("nan")}
    assert agreed([("a", ONE), ("b", again)], "settings", of_each=["seed"]) is ONE
    assert agreed([("a", ONE)], "settings") is ONE
    assert disagreements([]) == ()


def test_what_differs_is_told_with_both_places() -> None:
    other = {"groups": [{"lr": 0.77, "betas": (0.1, 0.95)}], "seed": True, "scale": float("nan")}
    more = {**ONE, "groups": [{"lr": 0.5, "betas": (0.9, 0.95)}], "extra": "x" * 100}
    with pytest.raises(ReshardError) as caught:
        agreed([("a.pt", ONE), ("b.pt", other), ("c.pt", more)], "settings of the optimizer")
    assert str(caught.value) == (
        "error[mixed-runs]: the settings of the optimizer differ between ranks\n"
        "  = note: `groups[0].lr` is 0.01 in a.pt, and 0.77 in b.pt\n"
        "  = note: `groups[0].betas[0]` is 0.9 in a.pt, and 0.1 in b.pt\n"
        "  = note: `seed` is 1 in a.pt, and True in b.pt\n"
        "  = note: 1 more differ\n"
        "  = help: the files may be from different runs or steps; use the files of one run and "
        "one step"
    )


def test_lists_of_other_lengths_and_keys_that_lack_are_told() -> None:
    (longer, key) = disagreements([("a", {"x": [1], "y": 1}), ("b", {"x": [1, 2]})])
    assert str(longer) == "`x` is [1] in a, and [1, 2] in b"
    assert str(key) == "`y` is 1 in a, and not there in b"
