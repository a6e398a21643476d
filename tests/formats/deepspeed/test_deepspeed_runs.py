"""Small real runs of DeepSpeed with what is rare: read equal to the truth, and cut anew."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deepspeed_oracle import arrange, wholes

from real_cases import DEEPSPEED_RUNS
from reshard import api
from reshard.errors import ReshardError
from reshard.formats.deepspeed.read import read

Open = Callable[[str], Path]
UNNAMED = "run_z0_llrd_fp32"
CUT = tuple(name for name in DEEPSPEED_RUNS if name != UNNAMED)


def truth(path: Path) -> dict[tuple[str, str], tuple[tuple[int, ...], bytes]]:
    """Tensors of a safetensors file: (name, state) -> shape and bytes; `lp` is `param`."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    out = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__":
            name, _, state = key.rpartition("/")
            start, stop = (8 + length + at for at in entry["data_offsets"])
            shape = tuple(entry["shape"])
            out[name, "param" if state == "lp" else state] = (shape, data[start:stop])
    return out


@pytest.mark.parametrize("case", DEEPSPEED_RUNS)
def test_every_tensor_is_the_truth(case: str, fixture_checkpoint: Open) -> None:
    folder = fixture_checkpoint(case)
    catalog = read(folder / "ckpt")
    found = wholes(arrange(catalog))
    lacking = set()
    for (name, state), (shape, raw) in truth(folder / "truth.safetensors").items():
        tensor = found.get((name, state))
        if tensor is None and state == "param" and (name, "master") in found:
            continue  # ZeRO-3 stores no weights
        if tensor is None:
            lacking.add(name)
            continue
        assert (tensor.shape, tensor.tobytes()) == (shape, raw), (name, state)
    told = set() if case != "run_partial_z3" else {n for n in lacking if n.startswith("blocks.0.")}
    assert lacking == told
    assert len(lacking) == (6 if case == "run_partial_z3" else 0)


@pytest.mark.parametrize("to", ["deepspeed:zero=1,dp=3", "deepspeed:zero=2,dp=1"])
@pytest.mark.parametrize("case", CUT)
def test_it_comes_back_from_another_size(case: str, to: str, fixture_checkpoint: Open) -> None:
    if case == "run_mixed_z1":
        to = to.replace("dp=3", "dp=8").replace("dp=1", "dp=4")  # experts over four ranks
    proof = api.roundtrip(fixture_checkpoint(case) / "ckpt", [to])
    lost = {name for way in proof.ways for fate in way.lost for name in [fate.name]}
    assert lost == ({"rank.1.0.rng"} if case == "run_zk_perrank" else set())
    assert proof.ok or lost


@pytest.mark.parametrize("case", [c for c in CUT if c != "run_mixed_z1"])
def test_it_comes_back_from_stage_3(case: str, fixture_checkpoint: Open) -> None:
    same = "deepspeed:zero=3,dp=2" if case == "run_zk_perrank" else "deepspeed:zero=3,dp=3"
    assert api.roundtrip(fixture_checkpoint(case) / "ckpt", [same]).ok


def test_states_without_names_leave_the_weights(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint(UNNAMED) / "ckpt"
    (warning,) = read(source).oddities
    assert warning.code == "unnamed-states"
    assert "  = note: state 0 of group 0 is of `emb.weight` or `head.weight`" in warning.render()
    with pytest.raises(ReshardError) as caught:
        api.convert(source, tmp_path / "out", "universal")
    assert "error[ambiguous-optimizer-ids]" in str(caught.value)
    api.convert(source, tmp_path / "out", "universal", states="weights")


def test_momentum_of_muon_is_of_whole_parameters(fixture_checkpoint: Open) -> None:
    found = wholes(arrange(read(fixture_checkpoint("run_muon_z2_dp4") / "ckpt")))
    momenta = {name: t.shape for (name, state), t in found.items() if state == "momentum_buffer"}
    assert momenta["blocks.0.up.weight"] == (25, 12)
    assert len(momenta) == 6
    assert all(np.isfinite(found[name, "momentum_buffer"]).all() for name in momenta)
