"""Round trips of real checkpoints through every form, as the table in docs/reliability.md.

    python benchmarks/roundtrips.py [CHECKPOINT...]

Each CHECKPOINT is a folder of a case, `CASE/ckpt` or `CASE`; without any, those of `fixtures/` that
are kept unpacked or packed.  No times are printed: the table is the same on any machine.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import reshard

VIA = (
    "universal",
    "deepspeed:zero=1,dp=2",
    "deepspeed:zero=2,dp=4",
    "deepspeed:zero=3,dp=4",
    "deepspeed-universal",
    "dcp:dp=3",
    "megatron-dist",
    "hf",
)
SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim")
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def main(paths: Sequence[str]) -> int:
    """Print the table; 1 if anything did not come back."""
    failed = []
    print("| checkpoint |", " | ".join(f"`{via}`" for via in VIA), "|")
    print("|---|" + "---|" * len(VIA))
    with tempfile.TemporaryDirectory() as folder:
        cases = map(Path, paths) if paths else _fixtures(Path(folder))
        for path in cases:
            name = path.parent.name if path.name == "ckpt" else path.name
            try:
                reshard.open(path)
            except reshard.ReshardError as error:
                print(f"| {name} | refused: `{error.diagnostics[0].code}`" + " |" * len(VIA))
                continue
            cells = [_cell(path, via) for via in VIA]
            failed += [
                f"{name} via {via}" for via, cell in zip(VIA, cells, strict=True) if "!" in cell
            ]
            print(f"| {name} |", " | ".join(cells), "|", flush=True)
    for item in failed:
        print(f"did not come back: {item}", file=sys.stderr)
    return int(bool(failed))


def _fixtures(folder: Path) -> Iterator[Path]:
    for case in sorted(FIXTURES.glob("*/case.json")):
        archive = case.with_name("case.tar.xz")
        if archive.is_file():
            with tarfile.open(archive) as packed:
                packed.extractall(folder / case.parent.name, filter="data")
            yield folder / case.parent.name / "ckpt"
        else:
            yield case.parent / "ckpt"


def _sizes(path: Path) -> dict[str, int]:
    """The sizes that a run knew and its checkpoint does not tell, as `--set` would give them."""
    for case in (path.parent / "case.json", FIXTURES / path.parent.name / "case.json"):
        if case.is_file():
            sizes = json.loads(case.read_text(encoding="utf-8")).get("sizes", {})
            return {name: sizes[name] for name in SIZES if name in sizes}
    return {}


def _cell(path: Path, via: str) -> str:
    """What came back: `105` tensors; `84 (+21)`, of which 21 are told by others; `21 of 105`, where
    the others are lost; a code, where the target is not possible."""
    try:
        (way,) = reshard.roundtrip(path, [via], allow_loss=True, settings=_sizes(path) or None).ways
    except reshard.ReshardError as error:
        return f"`{error.diagnostics[0].code}`"
    derived = len({(x.name, x.state) for x in way.lost if x.derived})
    if not way.ok:
        return "**!**"
    if way.missing:
        return f"{way.tensors + derived} of {way.tensors + derived + len(way.missing)}"
    return f"{way.tensors} (+{derived})" if derived else f"{way.tensors}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
