"""Compares `reshard convert` of sharded weights with `cp -r` and with torch's consolidation.

    .venv/bin/python benchmarks/hf.py --torch-python PYTHON [--rounds N] [--json FILE]

The source is what torch's distributed writer for Hugging Face leaves of 4 ranks: each has a quarter
of the rows of every tensor. Each round runs every contender once, in an order that turns; the table
shows medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import struct
import sys
import tempfile
from pathlib import Path

from convert import MIB, measure_all, median_cost, table
from measure import disk_nbytes

RANKS = 4
COLUMNS = 2048
_CONSOLIDATE = (
    "from torch.distributed.checkpoint import _consolidate_hf_safetensors as c; import sys; "
    "c.consolidate_safetensors_files(sys.argv[1], sys.argv[2], "
    "fqn_to_index_mapping={f'layers.{i}.weight': 1 for i in range(int(sys.argv[3]))})"
)


def make_source(folder: Path, tensors: int, rows: int) -> None:
    """Write the files of all ranks; every element names its place in the file."""
    folder.mkdir()
    local = rows // RANKS
    size = local * COLUMNS * 4
    block = bytes(range(256)) * (size // 256)
    names = [f"layers.{index}.weight" for index in range(tensors)]
    for rank in range(RANKS):
        info = {name: {"saved_offsets": [rank * local, 0]} for name in names}
        header: dict[str, object] = {
            "__metadata__": {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0"}
        }
        for index, name in enumerate(names):
            at = [index * size, (index + 1) * size]
            header[name] = {"dtype": "F32", "shape": [local, COLUMNS], "data_offsets": at}
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        path = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            for _ in names:
                file.write(block)


def contenders(source: Path, tensors: int, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of every contender; each writes into the folder `{out}`."""
    reshard = arguments.reshard or str(Path(sys.executable).with_name("reshard"))
    convert = [reshard, "convert", str(source)]
    torch = [arguments.torch_python, "-c", _CONSOLIDATE, str(source), "{out}", str(tensors)]
    return {
        "cp -r": ["cp", "-r", str(source), "{out}/copy"],
        "reshard hf": [*convert, "{out}/hf", "--to", "hf", "--quiet"],
        "reshard": [*convert, "{out}/universal", "--to", "universal", "--quiet"],
        "consolidate": torch,
    }


def main() -> None:
    """Make the source, run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tensors", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4096, help="of each tensor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", required=True, help="interpreter with torch")
    parser.add_argument("--reshard", help="the command; beside this interpreter if not given")
    parser.add_argument("--dir", type=Path, help="work folder; /dev/shm where there is one")
    parser.add_argument("--json", type=Path, help="write every figure of every round here")
    arguments = parser.parse_args()
    base = arguments.dir or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="reshard-benchmark-", dir=base) as folder:
        work = Path(folder)
        source = work / "source"
        make_source(source, arguments.tensors, arguments.rows)
        commands = contenders(source, arguments.tensors, arguments)
        costs = measure_all(commands, arguments.rounds, work)
        nbytes = disk_nbytes(source)
    print(
        f"source {nbytes / MIB:.0f} MiB, median of {arguments.rounds} rounds, in {base or folder}"
    )
    print(
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}\n"
    )
    print(table({name: median_cost(found) for name, found in costs.items()}))
    if arguments.json:
        record = {name: [dataclasses.asdict(c) for c in found] for name, found in costs.items()}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
