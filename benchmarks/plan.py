"""How long planning takes, and how much memory: a made catalog of a large model, no bytes at all.

    python benchmarks/plan.py [--layers 80] [--tp 8] [--dp 64] [--zero 3] [--profile]

Prints one line for each phase: seconds, and the process's largest resident memory so far.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import time
from collections.abc import Callable, Iterator
from math import prod
from typing import TypeVar

from reshard.algebra.partition import partition_buffer, partition_each
from reshard.dtypes import DType
from reshard.language import load_layout
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.plan.lay_out import lay_out
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import ArraySpec
from reshard.plan.prove import prove_sources
from reshard.run.run import Run

LAYOUT = """
layout gpt {
    mesh pp, tp, dp
    "embed"                = [rows over tp, _]
    "head"                 = [rows over tp, _]
    "norm"                 = [_]
    "layers.{layer}.q"     = [rows over tp, _]
    "layers.{layer}.k"     = [rows over tp, _]
    "layers.{layer}.v"     = [rows over tp, _]
    "layers.{layer}.o"     = [_, cols over tp]
    "layers.{layer}.fc1"   = [(gate over tp + up over tp), _]
    "layers.{layer}.down"  = [_, cols over tp]
    "layers.{layer}.norm*" = [_]
}
"""

T = TypeVar("T")


def shapes(layers: int, pp: int, stage: int, tp: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The local tensors of a model like Llama 70B on one stage."""
    if stage == 0:
        yield "embed", (128256 // tp, 8192)
    for layer in range(stage * layers // pp, (stage + 1) * layers // pp):
        yield f"layers.{layer}.q", (8192 // tp, 8192)
        yield f"layers.{layer}.k", (1024 // tp, 8192)
        yield f"layers.{layer}.v", (1024 // tp, 8192)
        yield f"layers.{layer}.o", (8192, 8192 // tp)
        yield f"layers.{layer}.fc1", (2 * 28672 // tp, 8192)
        yield f"layers.{layer}.down", (8192, 28672 // tp)
        yield f"layers.{layer}.norm1", (8192,)
        yield f"layers.{layer}.norm2", (8192,)
    if stage == pp - 1:
        yield "norm", (8192,)
        yield "head", (128256 // tp, 8192)


def catalog(layers: int, pp: int, tp: int, dp: int, zero: int) -> Catalog:
    """Weights and optimizer states of every rank, cut as a ZeRO stage cuts them."""
    tensors = []
    for stage in range(pp):
        for tp_rank in range(tp):
            coord = (("pp", stage), ("tp", tp_rank))
            held = list(shapes(layers, pp, stage, tp))
            numels = tuple(prod(shape) for _, shape in held)
            cut = partition_each(numels, dp) if zero == 3 else partition_buffer(numels, dp, 2 * dp)
            for state in ("param", "master", "exp_avg", "exp_avg_sq"):
                runs: dict[int, list[Fragment]] = {}
                names = [f"{state}-{stage}-{tp_rank}-{dp_rank}.pt" for dp_rank in range(dp)]
                for share in cut.shares:
                    fragment = Fragment(
                        share.start, share.numel, names[share.rank], 4 * share.offset
                    )
                    runs.setdefault(share.tensor, []).append(fragment)
                for index, (name, shape) in enumerate(held):
                    fragments = tuple(sorted(runs[index], key=lambda item: item.start))
                    tensors.append(LocalTensor(name, state, coord, shape, DType.F32, fragments))
    mesh = {"pp": pp, "tp": tp, "dp": dp}
    return Catalog("made", "", "/made", mesh, tuple(tensors), load_layout(LAYOUT), Run())


def phase(name: str, work: Callable[[], T], profile: bool) -> T:
    """Run one phase and say what it took."""
    profiler = cProfile.Profile() if profile else None
    start = time.perf_counter()
    out = profiler.runcall(work) if profiler else work()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<24}{seconds:>8.1f} s{peak:>10.0f} MB")
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    return out


def main() -> None:
    """Catalog, bind, prove, whole tensors, and local tensors of another mesh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--pp", type=int, default=4)
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--dp", type=int, default=64)
    parser.add_argument("--zero", type=int, default=3, choices=(1, 3))
    parser.add_argument("--target-tp", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()

    def run(name: str, work: Callable[[], T]) -> T:
        return phase(name, work, options.profile)

    source = run(
        "make the catalog",
        lambda: catalog(options.layers, options.pp, options.tp, options.dp, options.zero),
    )
    fragments = sum(len(tensor.fragments) for tensor in source.tensors)
    print(f"{len(source.tensors):,} local tensors in {fragments:,} fragments")
    arrangement = run("bind", lambda: bind(load_layout(LAYOUT), source))
    run("prove", lambda: prove_sources(arrangement))
    wholes = [
        PlacedSpec(
            ArraySpec(w.name, w.state, w.dtype, prod(w.shape), w.segments, w.shape), "out", 0
        )
        for w in arrangement.wholes
    ]
    plan = run("build whole tensors", lambda: build_plan(arrangement, wholes))
    print(
        f"{len(plan.placed):,} arrays of {sum(len(p.array.copies) for p in plan.placed):,} copies"
    )
    del plan
    mesh = {"pp": options.pp, "tp": options.target_tp}
    laid = run("lay out another mesh", lambda: lay_out(arrangement, mesh))
    locals_ = [
        PlacedSpec(
            ArraySpec(item.name, state, DType.F32, prod(item.shape), item.segments), "out", 0
        )
        for item in laid
        for state in ("param", "master", "exp_avg", "exp_avg_sq")
    ]
    plan = run("build local tensors", lambda: build_plan(arrangement, locals_))
    print(
        f"{len(plan.placed):,} arrays of {sum(len(p.array.copies) for p in plan.placed):,} copies"
    )


if __name__ == "__main__":
    main()
