"""Corruptions of data, layouts, and plans: every one is noticed, or is proved to be none."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import mutations
import reshard

COUNT = 40
SEED = 2


@pytest.fixture(scope="module")
def bench(
    fixture_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> mutations.Bench:
    """What is corrupted."""
    plain, cut = (
        fixture_checkpoint(name) / "ckpt" for name in ("z1_bf16_dp4_tied", "toytp_tp2_dp2_z1_fp32")
    )
    return mutations.Bench(plain, cut, tmp_path_factory.mktemp("mutations"))


def test_every_corruption_is_noticed(bench: mutations.Bench) -> None:
    found = mutations.run(bench, COUNT, SEED)
    assert [item for item in found if item.noticed == mutations.MISSED] == []
    counts = Counter(item.kind for item in found)
    assert list(counts.values()) == [COUNT // len(mutations.KINDS)] * len(mutations.KINDS)
    harmless = [item for item in found if item.noticed == mutations.HARMLESS]
    assert len(harmless) < COUNT // 8


def test_a_byte_that_nobody_reads_is_proved_to_be_none(bench: mutations.Bench) -> None:
    """The time of day in the header of a zip member, twelve bytes into the file."""
    folder = bench.copy(bench.plain)
    file = folder / "global_step3" / "mp_rank_00_model_states.pt"
    data = bytearray(file.read_bytes())
    assert data[:4] == b"PK\x03\x04"
    data[11] ^= 1
    file.write_bytes(data)
    assert reshard.verify(folder).ok
    assert mutations.reads_alike(bench.plain, folder)
    shutil.rmtree(folder)


def test_the_proof_can_fail(bench: mutations.Bench) -> None:
    """What is read of two runs is not alike, and two seeds corrupt different things."""
    assert not mutations.reads_alike(bench.plain, bench.cut)
    one, other = (mutations.byte_of_universal(bench, random.Random(seed)) for seed in (1, 2))
    assert one.what != other.what


def test_the_table_counts_what_was_missed() -> None:
    found = [
        mutations.Mutant("a byte", "byte 1", "verify"),
        mutations.Mutant("a byte", "byte 2", mutations.MISSED),
        mutations.Mutant("a byte", "byte 3", mutations.HARMLESS),
    ]
    assert mutations.table(found) == (
        "| corrupted | noticed by | count |\n"
        "|---|---|---|\n"
        "| a byte | missed | 1 |\n"
        "| a byte | no corruption: everything read is the same | 1 |\n"
        "| a byte | verify | 1 |\n"
        "| **all** | caught 1 of 2 corruptions | **3** |"
    )
