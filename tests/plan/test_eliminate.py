"""Sizes from several equations at once."""

from __future__ import annotations

from reshard.plan.eliminate import Polynomial, eliminate, expand


def test_products_of_unknowns_are_unknowns() -> None:
    first: Polynomial = {("kv", "q"): 16}
    second: Polynomial = {("kv", "q"): 16, ("kv",): 32}
    assert eliminate([(first, 64), (second, 128)]) == {"kv": 2}


def test_what_is_known_is_subtracted() -> None:
    assert eliminate([({("a",): 2, (): 6}, 20)]) == {"a": 7}


def test_too_few_equations_tell_nothing() -> None:
    assert eliminate([({("a",): 1, ("b",): 1}, 5)]) == {}
    assert eliminate([]) == {}


def test_no_size_is_a_fraction_or_nothing() -> None:
    assert eliminate([({("a",): 2}, 5)]) == {}
    assert eliminate([({("a",): 2}, 0)]) == {}


def test_the_same_equation_twice_is_one() -> None:
    assert eliminate([({("a",): 1, ("b",): 1}, 5), ({("a",): 1, ("b",): 1}, 5)]) == {}


def test_a_term_as_a_sum_of_products() -> None:
    from reshard.algebra.term import Leaf, Part, Product, Sum

    sizes = {"d": 4}
    term = Product(
        (
            Leaf("kv"),
            Sum((Part("q", Product((Leaf("q"), Leaf("d")))), Part("k", Leaf("d")))),
        )
    )
    found = expand(term, lambda axis: sizes.get(axis, axis))
    assert found == {("kv", "q"): 4, ("kv",): 4}
