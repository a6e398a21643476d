"""Corrupts checkpoints, layouts, and plans, one thing at a time, and says what noticed.

    python tests/mutations.py [COUNT] [SEED]

prints how many of each kind were caught and by what.  `test_mutations.py` runs a part of it.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

import reshard
from reshard.api.source import open_source
from reshard.engine.compare import digest_array
from reshard.formats.universal.manifest import own_digest, with_digest
from reshard.plan.build import build_plan
from reshard.plan.plan import Array, Copy, Plan
from reshard.store.digest import PREFIX, digest_file_range
from reshard.store.source_files import SourceFiles

HARMLESS = "no corruption: everything read is the same"
MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One corruption.

    Args:  kind: of corruption.  what: was changed.  noticed: the command that did, `HARMLESS` when
           what is read is proved to be the same, or `MISSED`.
    """

    kind: str
    what: str
    noticed: str


class Bench:
    """Checkpoints to corrupt, in a folder for copies.

    Args:  plain: a DeepSpeed checkpoint; cut: another one, with tensor parallelism and a layout of
           its own.
    """

    def __init__(self, plain: Path, cut: Path, work: Path) -> None:
        self.plain, self.cut, self.work = plain, cut, work
        self.universal = work / "universal"
        self.right = work / "right"
        reshard.convert(plain, self.universal, "universal")
        reshard.convert(cut, self.right, "universal")
        self.layout = reshard.open(cut).layout
        self._number = itertools.count()

    def copy(self, source: Path) -> Path:
        """A copy that may be changed."""
        target = self.work / f"copy-{next(self._number)}"
        shutil.copytree(source, target)
        return target


def byte_of_universal(bench: Bench, pick: random.Random) -> Mutant:
    """Any byte of any file of a universal checkpoint."""
    return _byte(bench, pick, "a byte of a universal checkpoint", bench.universal)


def byte_of_torch(bench: Bench, pick: random.Random) -> Mutant:
    """Any byte of any file of a DeepSpeed checkpoint."""
    return _byte(bench, pick, "a byte of a DeepSpeed checkpoint", bench.plain)


def _byte(bench: Bench, pick: random.Random, kind: str, source: Path) -> Mutant:
    folder = bench.copy(source)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    (path,) = pick.choices(files, sizes)
    at, bits = pick.randrange(path.stat().st_size), pick.randrange(1, 256)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bits]))
    what = f"byte {at} of {path.relative_to(folder)} xor {bits}"
    try:
        noticed = "" if reshard.verify(folder).ok else "verify"
    except reshard.ReshardError:
        noticed = "verify"
    noticed = noticed or (HARMLESS if reads_alike(source, folder) else MISSED)
    shutil.rmtree(folder)
    return Mutant(kind, what, noticed)


def reads_alike(source: Path, folder: Path) -> bool:
    """Whether nothing that is read of a folder differs: tensors and all other values."""
    one, other = open_source(source).catalog, open_source(folder).catalog
    alike = (one.tensors, one.training, one.aliases, one.config, one.layout, one.mesh) == (
        other.tensors,
        other.training,
        other.aliases,
        other.config,
        other.layout,
        other.mesh,
    )
    return alike and reshard.diff(source, folder).same


def tensor_with_its_digest(bench: Bench, pick: random.Random) -> Mutant:
    """A whole tensor of a universal checkpoint, and the digests so that they fit again."""
    folder = bench.copy(bench.universal)
    catalog = open_source(folder).catalog
    tensor = pick.choice([item for item in catalog.tensors if item.numel > 8])
    fragment = tensor.fragments[0]
    path, nbytes = folder / fragment.file, tensor.numel * tensor.dtype.itemsize
    how = pick.choice(["zeroed", "moved by one element", "reversed", "one sign changed"])
    with path.open("r+b") as file:
        file.seek(fragment.byte_offset)
        data = np.frombuffer(file.read(nbytes), np.uint8).reshape(-1, tensor.dtype.itemsize).copy()
        if how == "zeroed":
            data[:] = 0
        elif how == "moved by one element":
            data = np.roll(data, 1, axis=0)
        elif how == "reversed":
            data = data[::-1]
        else:
            data[pick.randrange(len(data)), -1] ^= 0x80
        file.seek(fragment.byte_offset)
        file.write(data.tobytes())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = manifest["tensors"][tensor.name][tensor.state]
    before = entry["digest"]
    after = digest_file_range(path, fragment.byte_offset, nbytes)
    text = (folder / "manifest.json").read_bytes().replace(before.encode(), after.encode())
    digits = own_digest(text).removeprefix(PREFIX)
    (folder / "manifest.json").write_bytes(with_digest(text, digits))
    assert reshard.verify(folder).ok, "the digests fit the corrupted tensor"
    found = reshard.verify(bench.plain, folder)
    noticed = MISSED if found.ok else "verify A B"
    if found.ok and before == after:
        noticed = HARMLESS
    shutil.rmtree(folder)
    return Mutant("a tensor, its digest made to fit", f"{tensor.name} {how}", noticed)


def copy_of_a_plan(bench: Bench, pick: random.Random) -> Mutant:
    """One copy of the plan by which a target is written: what a wrong writer would do."""
    target = pick.choice(
        ["deepspeed:zero=1,dp=3", "deepspeed:zero=2,dp=2", "deepspeed:zero=3,dp=2"]
    )
    how = pick.choice(["left out", "read one element further", "two exchanged"])
    changed: list[tuple[str, Array, Array, str]] = []

    def broken(*args: object, **named: object) -> Plan:
        made = build_plan(*args, **named)  # type: ignore[arg-type]
        if not any(item.file.endswith("optim_states.pt") for item in made.placed):
            return made
        number, array = _mutated(made, how, pick)
        item = made.placed[number]
        changed.append((made.root, item.array, array, item.array.spec.label))
        placed = (*made.placed[:number], replace(item, array=array), *made.placed[number + 1 :])
        return Plan(made.root, placed)

    with mock.patch("reshard.api.converting.build_plan", broken):
        try:
            found = reshard.roundtrip(bench.plain, [target])
            noticed = MISSED if found.ok else "roundtrip"
        except reshard.ReshardError:
            noticed = "roundtrip"
    _, before, after, label = changed[0]
    if noticed == MISSED and _makes_alike(bench, target, before, after):
        noticed = HARMLESS
    return Mutant("a copy of the plan of a writer", f"{label} in {target}: {how}", noticed)


def _makes_alike(bench: Bench, target: str, before: Array, after: Array) -> bool:
    """Whether two arrays of a plan from the universal form are the same bytes."""
    with SourceFiles(bench.universal) as files:
        return digest_array(before, files) == digest_array(after, files)


def _mutated(plan: Plan, how: str, pick: random.Random) -> tuple[int, Array]:
    numbers = [n for n, item in enumerate(plan.placed) if _choices(item.array, how)]
    number = pick.choice(numbers)
    array = plan.placed[number].array
    copies = list(array.copies)
    first, second = pick.choice(_choices(array, how))
    if how == "left out":
        del copies[first]
    elif how == "two exchanged":
        one, other = copies[first], copies[second]
        copies[first], copies[second] = _moved(other, one), _moved(one, other)
    else:
        origin = copies[first].origins[0]
        move = replace(origin.move, src_offset=origin.move.src_offset + 1)
        copies[first] = replace(copies[first], origins=(replace(origin, move=move),))
    return number, replace(array, copies=tuple(copies))


def _choices(array: Array, how: str) -> list[tuple[int, int]]:
    """The copies of an array that can be changed so, in pairs."""
    copies = array.copies
    if how == "two exchanged":
        return [
            (a, b)
            for a, b in itertools.combinations(range(len(copies)), 2)
            if copies[a].move.shape == copies[b].move.shape
        ]
    return [(n, n) for n, copy in enumerate(copies) if copy.origins[0].literal is None]


def _moved(copy: Copy, to: Copy) -> Copy:
    origin = copy.origins[0]
    move = replace(origin.move, dst_offset=to.move.dst_offset)
    return replace(copy, origins=(replace(origin, move=move),))


def rule_of_a_layout(bench: Bench, pick: random.Random) -> Mutant:
    """One rule of the layout through which a checkpoint is read."""
    rules = [line for line in bench.layout.split("\n") if '" ' in line and "=" in line]
    line, changed = pick.choice([(a, b) for a in rules for b in _changed_rules(a)])
    file = bench.work / f"mutant-{next(bench._number)}.ucl"
    file.write_text(bench.layout.replace(line, changed), encoding="utf-8")
    out = file.with_suffix("")
    what = f"{line.strip()}  ->  {changed.strip() or '(no rule)'}"
    try:
        reshard.convert(bench.cut, out, "universal", layout=file)
        noticed = "" if reshard.verify(out, bench.right).ok else "verify A B"
    except reshard.ReshardError:
        noticed = "convert"
    if not noticed:
        noticed = HARMLESS if reshard.diff(bench.right, out).same else MISSED
    shutil.rmtree(out, ignore_errors=True)
    file.unlink()
    return Mutant("a rule of a layout", re.sub(" +", " ", what), noticed)


def _changed_rules(line: str) -> Iterator[str]:
    """A rule with one thing changed, in every way that there is."""
    yield ""
    yield line.replace('"', '"x', 1)
    yield line + "\n" + line.replace("=", " =", 1)
    for found in re.finditer(r" over tp", line):
        yield line[: found.start()] + line[found.end() :]
    if " averaged over tp" not in line:
        yield line + " averaged over tp"
    for found in re.finditer(r"\d+", line.partition("=")[2]):
        at = len(line) - len(line.partition("=")[2])
        start, stop = at + found.start(), at + found.end()
        yield line[:start] + str(int(found[0]) + 1) + line[stop:]
        yield line[:start] + str(max(1, int(found[0]) // 2)) + line[stop:]
    if "[...]" in line:
        yield line.replace("[...]", "[rows over tp, ...]")
        yield line.replace("[...]", "[(a over tp + b over tp), ...]")
    if "[_, " in line:
        yield line.replace("[_, columns over tp]", "[rows over tp, _]")
    if " + " in line:
        inside = re.search(r"\((.*)\)", line)
        assert inside is not None
        parts = inside[1].split(" + ")
        yield line.replace(inside[1], " + ".join([*parts[1:], parts[0]]))
        yield line.replace(f"({inside[1]})", "rows over tp")
    elif "[rows over tp" in line:
        yield line.replace("[rows over tp", "[(a over tp + b over tp)")


KINDS: tuple[Callable[[Bench, random.Random], Mutant], ...] = (
    byte_of_universal,
    byte_of_torch,
    tensor_with_its_digest,
    copy_of_a_plan,
    rule_of_a_layout,
)


def run(bench: Bench, count: int, seed: int) -> list[Mutant]:
    """So many corruptions, of each kind in turn; the same ones for the same seed."""
    pick = random.Random(seed)
    return [KINDS[number % len(KINDS)](bench, pick) for number in range(count)]


def table(mutants: list[Mutant]) -> str:
    """The counts, as a table for docs/reliability.md."""
    counts: Counter[tuple[str, str]] = Counter((item.kind, item.noticed) for item in mutants)
    lines = ["| corrupted | noticed by | count |", "|---|---|---|"]
    lines += [
        f"| {kind} | {noticed} | {count} |" for (kind, noticed), count in sorted(counts.items())
    ]
    real = [item for item in mutants if item.noticed != HARMLESS]
    caught = sum(item.noticed != MISSED for item in real)
    lines.append(f"| **all** | caught {caught} of {len(real)} corruptions | **{len(mutants)}** |")
    return "\n".join(lines)


def main(count: int = 200, seed: int = 0) -> int:
    """Run on two fixtures; print the table, what was missed, and what was no corruption."""
    import tarfile

    fixtures = Path(__file__).resolve().parent.parent / "fixtures"
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut"
        with tarfile.open(fixtures / "toytp_tp2_dp2_z1_fp32" / "case.tar.xz") as packed:
            packed.extractall(cut, filter="data")
        bench = Bench(fixtures / "z1_bf16_dp4_tied" / "ckpt", cut / "ckpt", Path(folder))
        mutants = run(bench, count, seed)
    print(table(mutants))
    for item in mutants:
        if item.noticed in (MISSED, HARMLESS):
            print(f"{item.noticed}: {item.kind}: {item.what}")
    return int(any(item.noticed == MISSED for item in mutants))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
