"""Any layout, any mesh: what is bound, proved and planned is what the oracle cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, note
from hypothesis import strategies as st

from brute_force import fill
from made_sources import Made, made, whole_spec
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.prove import prove_sources

runs = st.lists(st.integers(1, 9), max_size=40)


def wholes(source: Made, arrangement: Arrangement, files: dict[str, bytes]) -> dict:
    """Every whole tensor, as the plan makes it."""
    plan = build_plan(arrangement, [whole_spec(whole) for whole in arrangement.wholes])
    return {
        (item.array.spec.label, item.array.spec.state): (
            item.array.spec.shape,
            fill(item.array, files, np.int32).tolist(),
        )
        for item in plan.placed
    }


@given(made(), runs)
def test_whole_tensors_are_what_was_cut(source: Made, pieces: list[int]) -> None:
    note(source.text)
    stored = source.store(pieces)
    arrangement = bind(source.layout, stored.catalog)
    proof = prove_sources(arrangement)
    assert proof.parts == sum(len(tensor.fragments) for tensor in stored.catalog.tensors)
    found = wholes(source, arrangement, stored.files)
    wanted = {}
    for rule in source.rules:
        for name, _ in rule.names():
            wanted[name, "step"] = source.number(name).tolist()
            for state in rule.states:
                wanted[name, state] = source.whole(rule, name, state).tolist()
    assert {key: values for key, (_, values) in found.items()} == wanted
