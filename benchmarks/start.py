"""What small commands cost, and what many files and many tensors cost before a byte is moved.

    python benchmarks/start.py [--reshard COMMAND] [--rounds 5] [--only WORD] [--large]

Prints for each command medians of CPU time (user and system) and of wall time, and the largest
resident memory. The checkpoints are those of `fixtures/`, and others made of them by `--reshard`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from measure import Cost, run_measured

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
EXPERTS, LAYERS = 256, 129
"""Three tensors an expert: 99,072; with those of attention and the norms, 100,000."""


def many_tensors(folder: Path) -> Path:
    """A Hugging Face folder of 100,000 tensors of 4 elements in 16 files, named as experts."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    names += [f"model.more.{index}.weight" for index in range(100_000 - len(names))]
    folder.mkdir()
    weight_map = {}
    count = 16
    for number in range(count):
        own = names[number::count]
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        header = {
            name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * index, 16 * index + 16]}
            for index, name in enumerate(own)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        data = struct.pack("<Q", len(text)) + text + bytes(16 * len(own))
        (folder / file).write_bytes(data)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 16 * len(names)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def main() -> None:
    """Make what is missing, run each command in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reshard", default=str(Path(sys.executable).with_name("reshard")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="commands with this word in their names")
    parser.add_argument("--large", action="store_true", help="many files and many tensors, too")
    options = parser.parse_args()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)

        def run(*words: str) -> Cost:
            shutil.rmtree(work / "out", ignore_errors=True)
            (work / "out").mkdir()
            return run_measured([options.reshard, *words], work / "out", environment)

        def converted(name: str, source: Path, target: str, *more: str) -> Path:
            if not (work / name).exists():
                run("convert", str(source), str(work / name), "--to", target, *more)
            return work / name

        def fixture(name: str) -> Path:
            archive = FIXTURES / name / "case.tar.xz"
            if not archive.is_file():
                return FIXTURES / name / "ckpt"
            if not (work / name).exists():
                with tarfile.open(archive) as packed:
                    packed.extractall(work / name, filter="data")
            return work / name / "ckpt"

        deepspeed = fixture("z1_bf16_dp4_tied")

        sizes = [
            *("--set", "num_attention_heads=4", "--set", "num_key_value_heads=2"),
            *("--set", "rms_norm_eps=1e-6", "--set", "rope_theta=1e4"),
        ]

        def convert(source: Path, target: str) -> list[str]:
            return ["convert", str(source), str(work / "out" / "to"), "--to", target]

        def hf() -> Path:
            return converted("hf", deepspeed, "hf", *sizes)

        def megatron() -> Path:
            return converted("megatron", hf(), "megatron:pp=2")

        def ranks() -> Path:
            return converted("ranks", deepspeed, "deepspeed:zero=1,dp=1024")

        def tensors() -> Path:
            return work / "many" if (work / "many").exists() else many_tensors(work / "many")

        small: dict[str, Callable[[], list[str]]] = {
            "--help": lambda: ["--help"],
            "inspect DeepSpeed": lambda: ["inspect", str(deepspeed)],
            "DeepSpeed to universal": lambda: convert(deepspeed, "universal"),
            "ZeRO-3 to universal": lambda: convert(fixture("z3_bf16_dp3_untied"), "universal"),
            "DeepSpeed to HF": lambda: [*convert(deepspeed, "hf"), *sizes],
            "HF to Megatron": lambda: convert(hf(), "megatron:pp=2"),
            "Megatron to HF": lambda: [*convert(megatron(), "hf"), *sizes[4:]],
            "inspect Megatron": lambda: ["inspect", str(megatron())],
            "DCP to universal": lambda: convert(fixture("dcp_dp2"), "universal"),
            "layouts": lambda: ["layouts"],
        }
        large: dict[str, Callable[[], list[str]]] = {
            "inspect 1,024 ranks": lambda: ["inspect", str(ranks())],
            "inspect 100,000 tensors": lambda: ["inspect", str(tensors())],
            "plan 100,000 tensors": lambda: ["plan", str(tensors()), "--to", "universal"],
        }
        print(f"{'command':<28}{'CPU s':>8}{'wall s':>8}{'MiB':>7}")
        for name, words in (small | large if options.large else small).items():
            if options.only not in name:
                continue
            command = words()
            costs = [run(*command) for _ in range(options.rounds)]
            cpu, wall = median(c.cpu for c in costs), median(c.wall for c in costs)
            memory = max(c.process_nbytes for c in costs) / (1 << 20)
            print(f"{name:<28}{cpu:>8.2f}{wall:>8.2f}{memory:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
