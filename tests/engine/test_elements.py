"""Distances of numbers, counted in numbers of their type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from reshard.engine.elements import max_ulps


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ml_dtypes.bfloat16])
def test_neighbours_are_one_apart(kind: object) -> None:
    data = np.array([0.0, 1.0, -1.0, 3.5, -0.0078125], kind)  # type: ignore[call-overload]
    after = np.nextafter(data, np.array(np.inf, data.dtype))
    assert max_ulps(data, after) == 1
    assert max_ulps(data, data) == 0


def test_signs_and_what_is_not_a_number() -> None:
    zero, minus = np.array([0.0], "<f4"), np.array([-0.0], "<f4")
    assert max_ulps(zero, minus) == 0
    smallest = np.array([2.0**-149], "<f4")
    assert max_ulps(smallest, -smallest) == 2
    assert max_ulps(np.array([-np.inf], "<f8"), np.array([np.inf], "<f8")) == 2 * 0x7FF0 << 48
    assert max_ulps(np.array([np.nan], "<f4"), zero) is None
    assert max_ulps(np.array([np.nan, 1], "<f4"), np.array([0, 1], "<f4")) == 0


def test_types_that_have_no_steps() -> None:
    assert max_ulps(np.array([1]), np.array([2])) is None
    assert max_ulps(np.array([True]), np.array([False])) is None
    assert max_ulps(np.array([1j]), np.array([2j])) is None


def test_a_type_without_a_sign() -> None:
    kind = ml_dtypes.float8_e8m0fnu
    assert max_ulps(np.array([1.0], kind), np.array([4.0], kind)) == 2
