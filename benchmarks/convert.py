"""Compares `reshard convert` with `cp -r` of the same bytes and with DeepSpeed's own converter.

    .venv/bin/python benchmarks/convert.py [--deepspeed-python PYTHON] [--rounds N] [--json FILE]

Each round runs every contender once, in an order that turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from measure import Cost, disk_nbytes, run_measured
from source import make_source

MIB = 2**20


def contenders(source: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of every contender; each writes the folder `{out}`."""
    commands = {
        "cp -r": ["cp", "-r", str(source), "{out}/copy"],
        "reshard": [
            *(arguments.reshard or str(Path(sys.executable).with_name("reshard")),),
            *("convert", str(source), "{out}/universal", "--to", "universal", "--quiet"),
        ],
    }
    if arguments.deepspeed_python:
        tag = (source / "latest").read_text(encoding="ascii").strip()
        commands["ds_to_universal"] = [
            *(arguments.deepspeed_python, "-m", "deepspeed.checkpoint.ds_to_universal"),
            *("--input_folder", str(source / tag), "--output_folder", "{out}/universal"),
        ]
    return commands


def measure_all(commands: dict[str, list[str]], rounds: int, work: Path) -> dict[str, list[Cost]]:
    """The costs of every contender, round by round."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    names = list(commands)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            out = work / "out"
            out.mkdir()
            command = [word.replace("{out}", str(out)) for word in commands[name]]
            costs[name].append(run_measured(command, out, environment))
            shutil.rmtree(out)
            last = costs[name][-1]
            print(
                f"round {index + 1}/{rounds}  {name:<16} {last.wall:7.2f} s  {last.cpu:7.2f} CPU-s",
                file=sys.stderr,
            )
    return costs


def median_cost(costs: list[Cost]) -> Cost:
    """The median of every figure."""
    fields = [field.name for field in dataclasses.fields(Cost)]
    return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in fields))


def table(medians: dict[str, Cost]) -> str:
    """The medians, with ratios to `cp -r`."""
    base = medians["cp -r"]
    head = ("", "wall s", "x cp", "CPU s", "x cp", "process", "tree", "output", "temporary")
    rows = [head]
    for name, cost in medians.items():
        sizes = (cost.process_nbytes, cost.tree_nbytes, cost.output_nbytes, cost.temporary_nbytes)
        rows.append(
            (
                name,
                f"{cost.wall:.2f}",
                f"{cost.wall / base.wall:.2f}",
                f"{cost.cpu:.2f}",
                f"{cost.cpu / base.cpu:.2f}",
                *(f"{nbytes / MIB:.0f} MiB" for nbytes in sizes),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main() -> None:
    """Make the source, run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--source", type=Path, help="a DeepSpeed checkpoint, the folder that holds `latest`"
    )
    parser.add_argument("--params", type=float, default=105.8e6, help="size of the made source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--deepspeed-python", help="interpreter with DeepSpeed: adds its converter")
    parser.add_argument("--reshard", help="the command; beside this interpreter if not given")
    parser.add_argument("--dir", type=Path, help="work folder; /dev/shm where there is one")
    parser.add_argument("--json", type=Path, help="write every figure of every round here")
    arguments = parser.parse_args()
    if arguments.source is None and arguments.deepspeed_python is None:
        parser.error("give --source, or --deepspeed-python to let DeepSpeed make one")
    base = arguments.dir or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="reshard-benchmark-", dir=base) as folder:
        work = Path(folder)
        source = arguments.source
        if source is None:
            source = make_source(work, int(arguments.params), arguments.deepspeed_python)
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
