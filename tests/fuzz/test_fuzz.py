"""A few inputs of every fuzzer; `tests/fuzz/run.py` runs as many as there is time for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import TARGETS, Fuzzed

from reshard.errors import ReshardError


@pytest.fixture(scope="module", params=sorted(TARGETS))
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    make: Callable[[Path], Fuzzed] = TARGETS[request.param]
    return make(tmp_path_factory.mktemp(request.param))


@settings(max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_input_is_read_or_refused(target: Fuzzed, seed: int) -> None:
    with contextlib.suppress(ReshardError):
        target.run(target.mutated(Random(seed)))
