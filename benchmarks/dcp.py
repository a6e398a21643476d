"""Compares `reshard convert` of a distributed checkpoint with `cp -r` and with torch's converter.

    .venv/bin/python benchmarks/dcp.py --torch-python PYTHON [--rounds N] [--json FILE]

Each round runs every contender once, in an order that turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from convert import MIB, measure_all, median_cost, table
from measure import disk_nbytes

HERE = Path(__file__).resolve().parent


def contenders(source: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of every contender; each writes into the folder `{out}`."""
    reshard = arguments.reshard or str(Path(sys.executable).with_name("reshard"))
    convert = [reshard, "convert", str(source)]
    torch = ["-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    return {
        "cp -r": ["cp", "-r", str(source), "{out}/copy"],
        "reshard": [*convert, "{out}/universal", "--to", "universal", "--quiet"],
        "reshard dcp": [*convert, "{out}/dcp", "--to", "dcp:dp=3", "--quiet"],
        "dcp_to_torch": [arguments.torch_python, *torch, str(source), "{out}/all.pt"],
    }


def main() -> None:
    """Make the source, run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, help="a folder with `.metadata`")
    parser.add_argument("--params", type=float, default=105.8e6, help="size of the made source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", required=True, help="interpreter with torch")
    parser.add_argument("--reshard", help="the command; beside this interpreter if not given")
    parser.add_argument("--dir", type=Path, help="work folder; /dev/shm where there is one")
    parser.add_argument("--json", type=Path, help="write every figure of every round here")
    arguments = parser.parse_args()
    base = arguments.dir or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="reshard-benchmark-", dir=base) as folder:
        work = Path(folder)
        source = arguments.source
        if source is None:
            source = work / "source"
            command = [arguments.torch_python, str(HERE / "dcp_source.py"), str(source)]
            subprocess.run([*command, str(int(arguments.params))], check=True)
        costs = measure_all(contenders(source.resolve(), arguments), arguments.rounds, work)
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
