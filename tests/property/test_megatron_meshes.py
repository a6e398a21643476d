"""Random legacy checkpoints of Megatron are read as the whole tensors that they were cut from."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from whole_tensors import arrange, wholes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats" / "megatron"))

from megatron_forge import Forge

from reshard.formats.megatron.read import read


@st.composite
def forges(draw: st.DrawFn) -> Forge:
    """A run at any mesh."""
    tp, pp = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    vpp = draw(st.integers(1, 2)) if pp > 1 else 1
    ep = draw(st.sampled_from([1, 1, 2]))
    experts = ep * draw(st.integers(1, 2)) if ep > 1 or draw(st.booleans()) else 0
    etps = [size for size in (1, 2, 4) if tp % size == 0] if experts else [tp]
    stages = draw(st.lists(st.integers(1, 3), min_size=pp * vpp, max_size=pp * vpp))
    return Forge(
        tp=tp,
        pp=pp,
        vpp=vpp,
        ep=ep,
        etp=draw(st.sampled_from(etps)),
        stages=tuple(stages),
        experts=experts,
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        gated=draw(st.booleans()),
        optimizer=draw(st.sampled_from(["adam", "fused"])),
        wd_first=draw(st.booleans()),
    )


@settings(max_examples=20)
@given(forges())
def test_what_is_read_is_what_was_cut(forge: Forge) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = wholes(arrange(read(forge.write(Path(folder)))))
    wanted: dict[tuple[str, str], Any] = dict(forge.whole())
    steps = {key: value for key, value in found.items() if key[1] == "step"}
    assert {name for name, _ in steps} == {name for name, _ in wanted}
    assert all(float(value) == 3.0 for value in steps.values())
    assert {key for key in found if key[1] != "step"} == set(wanted)
    for key, value in wanted.items():
        assert np.array_equal(found[key], value), key
