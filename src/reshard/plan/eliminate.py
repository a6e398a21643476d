"""Unknown sizes of several equations at once: products of unknowns are unknowns of their own.

`kv * q = 4` and `16 * kv * q + 32 * kv = 128` have no single unknown, and yet one solution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

from reshard.algebra.term import Leaf, Product, Term

Key = tuple[object, ...]
"""The unknowns of a product, sorted."""

Polynomial = dict[Key, int]

_MAX_TERMS = 64


def expand(term: Term, known: Callable[[str], int | object]) -> Polynomial:
    """The size of a term as a sum of products of unknowns.

    Args:  known: the size of an axis, or what stands for its unknown size.
    """
    if isinstance(term, Leaf):
        size = known(term.axis)
        return {(): size} if isinstance(size, int) else {(size,): 1}
    if isinstance(term, Product):
        out: Polynomial = {(): 1}
        for inner in term.terms:
            part = expand(inner, known)
            product: Counter[Key] = Counter()
            for left, a in out.items():
                for right, b in part.items():
                    product[tuple(sorted((*left, *right), key=str))] += a * b
            out = dict(product)
        return out
    total: Counter[Key] = Counter()
    for item in term.parts:
        total.update(expand(item.term, known))
    return dict(total)


def eliminate(equations: Iterable[tuple[Polynomial, int]]) -> dict[object, int]:
    """The unknowns that linear elimination finds; only whole sizes of at least 1.

    Args:  equations: each a polynomial and what it is equal to.
    """
    rows = [(dict(left), right - left.get((), 0)) for left, right in equations]
    keys = sorted({key for left, _ in rows for key in left if key}, key=lambda k: (-len(k), str(k)))
    if len(keys) > _MAX_TERMS:
        return {}
    unique = {tuple(left.get(key, 0) for key in keys): right for left, right in rows}
    matrix = [[*map(Fraction, left), Fraction(right)] for left, right in unique.items()]
    done = 0
    for column in range(len(keys)):
        pivot = next((r for r in range(done, len(matrix)) if matrix[r][column]), None)
        if pivot is None:
            continue
        matrix[done], matrix[pivot] = matrix[pivot], matrix[done]
        head = matrix[done][column]
        matrix[done] = [value / head for value in matrix[done]]
        for row, values in enumerate(matrix):
            if row != done and values[column]:
                by = values[column]
                matrix[row] = [a - by * b for a, b in zip(values, matrix[done], strict=True)]
        done += 1
    found: dict[object, int] = {}
    for values in matrix:
        used = [index for index, value in enumerate(values[:-1]) if value]
        if len(used) == 1 and len(keys[used[0]]) == 1:
            size = values[-1]
            if size.denominator == 1 and size >= 1:
                found[keys[used[0]][0]] = int(size)
    return found
