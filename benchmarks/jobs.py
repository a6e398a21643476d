"""The jobs of people: whole conversions against `cp -r` of the same bytes, and against peers.

    .venv/bin/python benchmarks/jobs.py [--size 1.4e9] [--rounds 5] [--peers PYTHON]

Sources are synthetic (`synthetic.py`), so that nothing but reshard is needed. Every round runs all
contenders once, in random order; the table shows medians, the least and the most, and ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import Cost, disk_nbytes, run_measured
from synthetic import NBYTES, SOURCES, Model

MIB = 2**20
HERE = Path(__file__).resolve().parent
JOBS = {
    "deepspeed": ("universal", "deepspeed:zero=3,dp=2", "hf"),
    "hf": ("universal", "megatron:tp=2,pp=1", "dcp:dp=4", "hf"),
    "megatron": ("megatron:tp=4", "hf", "megatron-dist"),
    "shards": ("hf", "universal"),
    "dcp": ("universal", "dcp:dp=3"),
}
"""Targets, by source; `dcp` is made by torch, and only with `--peers`."""

PEERS = {
    "deepspeed": {
        "ds_to_universal": (
            "-m",
            "deepspeed.checkpoint.ds_to_universal",
            *("--input_folder", "{src}/global_step10", "--output_folder", "{out}/universal"),
        ),
        "zero_to_fp32": (
            "-m",
            "deepspeed.utils.zero_to_fp32",
            *("{src}", "{out}/fp32", "--safe_serialization"),
        ),
    },
    "shards": {
        "consolidate": (
            "-c",
            "import sys; from synthetic import Model\n"
            "from torch.distributed.checkpoint import _consolidate_hf_safetensors as made\n"
            "names = {name: 1 for name, _ in Model(int(sys.argv[3])).tensors()}\n"
            "made.consolidate_safetensors_files(sys.argv[1], sys.argv[2], "
            "fqn_to_index_mapping=names)",
            *("{src}", "{out}", "{layers}"),
        ),
    },
    "dcp": {
        "dcp_to_torch": (
            "-m",
            "torch.distributed.checkpoint.format_utils",
            *("dcp_to_torch", "{src}", "{out}/all.pt"),
        ),
    },
    "hf": {
        "safetensors": (
            "-c",
            "import glob, os, sys; from safetensors.torch import load_file, save_file\n"
            "for f in glob.glob(sys.argv[1] + '/*.safetensors'):\n"
            "    save_file(load_file(f), os.path.join(sys.argv[2], os.path.basename(f)))",
            *("{src}", "{out}"),
        ),
    },
}
"""What others have for the same job, as arguments of an interpreter that has them."""


@dataclass(frozen=True)
class Contender:
    """One way to do a job.

    Args:  source: of which one.  name: in the table.  command: with `{src}` and `{out}`.
    """

    source: str
    name: str
    command: tuple[str, ...]


def contenders(reshard: str, peers: str | None) -> list[Contender]:
    """All of them, `cp -r` first for each source."""
    out = []
    for source, targets in JOBS.items():
        if source not in SOURCES and peers is None:
            continue
        out.append(Contender(source, "cp -r", ("cp", "-r", "{src}", "{out}/copy")))
        for to in targets:
            command = (reshard, "convert", "{src}", "{out}/made", "--to", to, "--quiet")
            out.append(Contender(source, f"reshard: {to}", command))
        if peers is not None:
            for name, arguments in PEERS.get(source, {}).items():
                out.append(Contender(source, name, (peers, *arguments)))
    return out


def measured(
    all_contenders: list[Contender],
    layers: dict[str, int],
    work: Path,
    rounds: int,
    pause: float,
) -> dict[Contender, list[Cost]]:
    """The costs, round by round."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPATH"] = str(HERE)
    costs: dict[Contender, list[Cost]] = {item: [] for item in all_contenders}
    for number in range(rounds):
        for item in random.sample(all_contenders, len(all_contenders)):
            out = work / "out"
            out.mkdir()
            time.sleep(pause)
            words = {"src": str(work / item.source), "out": str(out)}
            words["layers"] = str(layers[item.source])
            command = [_filled(word, words) for word in item.command]
            costs[item].append(run_measured(command, out, environment))
            shutil.rmtree(out)
            last = costs[item][-1]
            where = f"round {number + 1}/{rounds}  {item.source:<10} {item.name:<30}"
            print(f"{where} {last.wall:7.2f} s", file=sys.stderr)
    return costs


def _filled(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace("{" + name + "}", value)
    return word


def table(costs: dict[Contender, list[Cost]]) -> str:
    """Medians, the spread, and ratios to `cp -r` of the same source."""
    rows = [("source", "", "wall s", "least to most", "x cp", "CPU s", "x cp", "tree MiB", "temp.")]
    base: dict[str, tuple[float, float]] = {}
    for item, found in costs.items():
        walls = sorted(cost.wall for cost in found)
        wall, cpu = statistics.median(walls), statistics.median(cost.cpu for cost in found)
        base.setdefault(item.source, (wall, cpu))
        rows.append(
            (
                item.source,
                item.name,
                f"{wall:.2f}",
                f"{walls[0]:.2f} to {walls[-1]:.2f}",
                f"{wall / base[item.source][0]:.2f}",
                f"{cpu:.2f}",
                f"{cpu / base[item.source][1]:.2f}",
                f"{max(cost.tree_nbytes for cost in found) / MIB:.0f}",
                f"{max(cost.temporary_nbytes for cost in found) / MIB:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main() -> None:
    """Write the sources, run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1.4e9, help="bytes of each source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=2, help="seconds before each run")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with the frameworks")
    parser.add_argument("--reshard", default=str(Path(sys.executable).with_name("reshard")))
    parser.add_argument("--only", help="one source: deepspeed, hf, megatron, shards, or dcp")
    parser.add_argument("--dir", type=Path, help="work folder; /dev/shm where there is one")
    arguments = parser.parse_args()
    base = arguments.dir or (Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None)
    chosen = [
        item
        for item in contenders(arguments.reshard, arguments.peers)
        if arguments.only in (None, item.source)
    ]
    with tempfile.TemporaryDirectory(prefix="reshard-benchmark-", dir=base) as folder:
        work = Path(folder)
        layers: dict[str, int] = {}
        for source in dict.fromkeys(item.source for item in chosen):
            model = Model.of_size(arguments.size / NBYTES[source])
            layers[source] = model.layers
            if source in SOURCES:
                SOURCES[source](work / source, model)
            else:
                made = [arguments.peers, str(HERE / "dcp_source.py"), str(work / source)]
                subprocess.run([*made, str(model.layers)], check=True)
            nbytes = disk_nbytes(work / source)
            print(f"{source}: {model.layers} layers, {nbytes / MIB:.0f} MiB", file=sys.stderr)
        costs = measured(chosen, layers, work, arguments.rounds, arguments.pause)
    print(f"sources of {arguments.size / MIB:.0f} MiB, median of {arguments.rounds} rounds")
    print(f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}")
    print(f"in {base or folder}, {arguments.pause:g} s before each run\n")
    print(table(costs))


if __name__ == "__main__":
    main()
