"""Terms for people, as UCL writes them."""

from __future__ import annotations

from reshard.algebra.term import Leaf, Product, Term


def show_term(term: Term) -> str:
    """`kv (wq + wk + wv)`; anonymous axes as `_`, the axes of `...` as `...`."""
    if isinstance(term, Leaf):
        if term.axis.startswith("..."):
            return "..."
        return "_" if term.axis.startswith("_") else term.axis
    if isinstance(term, Product):
        return " ".join(show_term(item) for item in term.terms) or "1"
    parts = []
    for part in term.parts:
        inner = show_term(part.term)
        parts.append(inner if inner == part.label else f"{part.label}[{inner}]")
    return "(" + " + ".join(parts) + ")"
