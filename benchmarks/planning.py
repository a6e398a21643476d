"""How much processor time and memory planning takes: made sources of large models, no bytes at all.

    python benchmarks/planning.py zero3 [--dp 128 1024]
    python benchmarks/planning.py experts [--parts 1 8]
    python benchmarks/planning.py weights [--layers 16 128]

`zero3`: a dense model of 80 layers, cut by ZeRO-3, to whole tensors and to another mesh.
`experts`: a model of a trillion parameters (61 layers, 256 experts, latent attention) from 1,024
ranks of Megatron with their optimizer states to 1,024 other ranks; of these, one rank's part, too.
`weights`: `inspect` and `plan` of a folder of weights, 776 tensors a layer, to other layouts.

Each case is run in a process of its own. `pieces` are fragments of the source or tensors, whichever
are more; a time is processor time, and `x a piece` is what a piece takes beside the case before it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TypeVar

from made import Model, write_weights

T = TypeVar("T")

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

STATES = ("param", "master", "exp_avg", "exp_avg_sq")


FACTS = {
    "q_lora": True,
    "shared_expert": True,
    "te": False,
    "grouped": False,
    "first_k_dense_replace": 1,
}
"""What names tell of a model, and here the benchmark."""


class Clock:
    """Says what each phase took."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """Run one phase."""
        start = time.process_time()
        out = work()
        seconds = time.process_time() - start
        self.total += seconds
        print(f"  {name:<30}{seconds:>8.2f} s{_peak():>8.0f} MiB", file=sys.stderr)
        return out


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dense_shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a model like Llama 70B."""
    yield "embed", (128256, 8192)
    for layer in range(layers):
        yield f"layers.{layer}.q", (8192, 8192)
        yield f"layers.{layer}.k", (1024, 8192)
        yield f"layers.{layer}.v", (1024, 8192)
        yield f"layers.{layer}.o", (8192, 8192)
        yield f"layers.{layer}.fc1", (2 * 28672, 8192)
        yield f"layers.{layer}.down", (8192, 28672)
        yield f"layers.{layer}.norm1", (8192,)
        yield f"layers.{layer}.norm2", (8192,)
    yield "norm", (8192,)
    yield "head", (128256, 8192)


def zero3(dp: int) -> tuple[int, float]:
    """From ZeRO-3 on `dp` ranks to whole tensors, and to four ranks of tensor parallelism."""
    from reshard.algebra.partition import Each, spread
    from reshard.dtypes import DType
    from reshard.language import load_layout
    from reshard.plan.bind import bind
    from reshard.plan.build import build_plan
    from reshard.plan.catalog import Catalog, Fragment, LocalTensor
    from reshard.plan.fate import fates
    from reshard.plan.lay_out import lay_out
    from reshard.plan.output import PlacedSpec
    from reshard.plan.plan import ArraySpec
    from reshard.plan.prove import prove_sources
    from reshard.run.run import Run

    def made() -> Catalog:
        shapes = list(dense_shapes(80))
        cut = spread(Each(), [shape for _, shape in shapes], dp).by_tensor(len(shapes))
        tensors = []
        for state in STATES:
            files = [f"{state}-{rank}.pt" for rank in range(dp)]
            for (name, shape), shares in zip(shapes, cut, strict=True):
                fragments = tuple(
                    Fragment(s.start, s.numel, files[s.rank], 4 * s.offset) for s in shares
                )
                tensors.append(LocalTensor(name, state, (), shape, DType.F32, fragments))
        layout = load_layout(LAYOUT)
        return Catalog("made", "", "/made", {"dp": dp}, tuple(tensors), layout, Run())

    clock = Clock()
    source = made()
    arrangement = clock("bind", lambda: bind(source.layout, source))
    proof = clock("prove", lambda: prove_sources(arrangement))
    wholes = [
        PlacedSpec(ArraySpec(w.name, w.state, w.dtype, prod(w.shape), w.segments), "out", 0)
        for w in arrangement.wholes
    ]
    plan = clock("plan whole tensors", lambda: build_plan(arrangement, wholes))
    clock("fates", lambda: fates(arrangement, plan))
    laid = clock("lay out", lambda: lay_out(arrangement, {"tp": 4}))
    local = [
        PlacedSpec(
            ArraySpec(item.name, state, DType.F32, prod(item.shape), item.segments), "out", 0
        )
        for item in laid
        for state in STATES
    ]
    clock("plan local tensors", lambda: build_plan(arrangement, local))
    return proof.parts, clock.total


def experts(parts: int) -> tuple[int, float]:
    """From 1,024 ranks to 1,024 others; with `parts` > 1, of so much less of the experts."""
    from reshard.algebra.partition import Each, spread
    from reshard.dtypes import DType
    from reshard.language.library import shipped
    from reshard.plan.bind import bind
    from reshard.plan.build import build_arrays, build_plan
    from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
    from reshard.plan.fate import fates
    from reshard.plan.lay_out import LaidTensor, lay_out
    from reshard.plan.output import PlacedSpec
    from reshard.plan.plan import ArraySpec
    from reshard.plan.prove import prove_sources
    from reshard.plan.prove_target import prove_target
    from reshard.run.run import Run

    model = Model(61, 256 // parts, expert=3072)
    layout = next(item for item in shipped() if item.name == "deepseek").layout("megatron")
    split = replace(layout.places["layer"], rule="balanced")
    layout = replace(layout, places={**layout.places, "layer": split})
    pp, ep = 16, 64 // parts
    config = {"args": _arguments(model), **FACTS}

    def made() -> Catalog:
        tensors = []
        for stage in range(pp):
            for rank in range(ep):
                coord: Coord = (("pp", stage), ("ep", rank))
                file = f"mp_rank_00_{stage:03}_{rank:03}/model_optim_rng.pt"
                at = 0
                for name, shape, is_expert in _megatron(model, stage, pp, rank, ep):
                    states = STATES if is_expert else STATES[:1]
                    for state in states:
                        numel = prod(shape)
                        dtype = DType.BF16 if state == "param" else DType.F32
                        run = (Fragment(0, numel, file, at),)
                        tensors.append(LocalTensor(name, state, coord, shape, dtype, run))
                        at += numel * dtype.itemsize
            dense = [x[:2] for x in _megatron(model, stage, pp, 0, ep) if not x[2]]
            cut = spread(Each(), [shape for _, shape in dense], ep).by_tensor(len(dense))
            for state in STATES[1:]:
                for (name, shape), shares in zip(dense, cut, strict=True):
                    runs = tuple(
                        Fragment(s.start, s.numel, f"{state}_{stage}_{s.rank}.pt", 4 * s.offset)
                        for s in shares
                    )
                    tensors.append(
                        LocalTensor(name, state, (("pp", stage),), shape, DType.F32, runs)
                    )
        mesh = {"pp": pp, "ep": ep}
        return Catalog("made", "", "/made", mesh, tuple(tensors), layout, Run(), config)

    source = made()
    clock = Clock()
    print(
        f"  {len(source.tensors):,} local tensors of {model.numel / 1e12:.2f}e12 parameters,"
        f" catalog {_peak():.0f} MiB",
        file=sys.stderr,
    )
    arrangement = clock("bind", lambda: bind(layout, source))
    proof = clock("prove", lambda: prove_sources(arrangement))
    mesh = {"pp": 8, "ep": 128 // parts}
    wholes = {(w.name, w.state): w for w in arrangement.wholes}

    def specs(laid: LaidTensor) -> Iterator[ArraySpec]:
        for state in STATES:
            whole = wholes.get((laid.whole, state))
            if whole is not None:
                yield ArraySpec(laid.name, state, whole.dtype, prod(laid.shape), laid.segments)

    def placed() -> list[PlacedSpec]:
        out = []
        for laid in lay_out(arrangement, mesh):
            is_expert = any(axis == "ep" for axis, _ in laid.coord)
            for spec in specs(laid):
                ranks = 1 if is_expert or spec.state != "param" else mesh["ep"]
                out += [PlacedSpec(spec, f"{laid.coord}-{rank}", 0) for rank in range(ranks)]
        return out

    output = clock("lay out", placed)
    plan = clock("plan", lambda: build_plan(arrangement, output))
    clock("prove the target", lambda: prove_target(arrangement, output, ()))
    clock("fates", lambda: fates(arrangement, plan))
    clock("bytes read", lambda: plan.bytes_read)
    print(f"  {len(plan.placed):,} arrays", file=sys.stderr)
    whole_time = clock.total

    def one_rank() -> int:
        laid = lay_out(arrangement, mesh, rank={"pp": 3, "ep": 5})
        arrays = build_arrays(arrangement, (spec for item in laid for spec in specs(item)))
        return sum(len(array.boxes) for array in arrays)

    boxes = clock("one rank's part", one_rank)
    print(f"  {boxes:,} boxes of one rank", file=sys.stderr)
    return proof.parts, whole_time


def _megatron(
    model: Model, stage: int, stages: int, ep_rank: int, ep: int
) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name and shape of what a rank of Megatron stores, and whether it is of an expert."""
    base, more = divmod(model.layers, stages)
    first = stage * base + min(stage, more)
    count = base + (stage < more)
    h, n, f = model.hidden, model.heads, model.expert
    if stage == 0:
        yield "embedding.word_embeddings.weight", (model.vocab, h), False
    for index in range(count):
        at = f"decoder.layers.{index}."
        yield at + "input_layernorm.weight", (h,), False
        yield at + "self_attention.linear_q_down_proj.weight", (1536, h), False
        yield at + "self_attention.q_layernorm.weight", (1536,), False
        yield at + "self_attention.linear_q_up_proj.weight", (n * 192, 1536), False
        yield at + "self_attention.linear_kv_down_proj.weight", (576, h), False
        yield at + "self_attention.kv_layernorm.weight", (512,), False
        yield at + "self_attention.linear_kv_up_proj.weight", (n * 256, 512), False
        yield at + "self_attention.linear_proj.weight", (h, n * 128), False
        yield at + "pre_mlp_layernorm.weight", (h,), False
        if first + index == 0:
            yield at + "mlp.linear_fc1.weight", (2 * model.dense, h), False
            yield at + "mlp.linear_fc2.weight", (h, model.dense), False
            continue
        yield at + "mlp.router.weight", (model.experts, h), False
        yield at + "mlp.router.expert_bias", (model.experts,), False
        yield at + "mlp.shared_experts.linear_fc1.weight", (2 * f, h), False
        yield at + "mlp.shared_experts.linear_fc2.weight", (h, f), False
        for expert in range(model.experts // ep):
            inner = f"{at}mlp.experts.local_experts.{expert}."
            yield inner + "linear_fc1.weight", (2 * f, h), True
            yield inner + "linear_fc2.weight", (h, f), True
    if stage == stages - 1:
        yield "decoder.final_layernorm.weight", (h,), False
        yield "output_layer.weight", (model.vocab, h), False


def _arguments(model: Model) -> dict[str, object]:
    return {
        "num_layers": model.layers,
        "num_attention_heads": model.heads,
        "hidden_size": model.hidden,
        "vocab_size": model.vocab,
        "make_vocab_size_divisible_by": 128,
        "untie_embeddings_and_output_weights": True,
        "multi_latent_attention": True,
        "swiglu": True,
        "normalization": "RMSNorm",
        "qk_head_dim": 128,
        "qk_pos_emb_head_dim": 64,
        "v_head_dim": 128,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "ffn_hidden_size": model.dense,
        "moe_ffn_hidden_size": model.expert,
        "num_experts": model.experts,
        "moe_shared_expert_intermediate_size": model.expert,
        "moe_layer_freq": [0] + [1] * (model.layers - 1),
        "moe_router_topk": 8,
        "moe_router_enable_expert_bias": True,
        "first_k_dense_replace": 1,
    }


def weights(layers: int) -> tuple[int, float]:
    """`inspect`, and `plan` to other layouts, of a folder of weights."""
    import reshard

    model = Model(layers, 256, hidden=1024, heads=16, vocab=32000, dense=2048, expert=128)
    clock = Clock()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "weights"
        count = write_weights(model, folder)
        clock("inspect", lambda: reshard.inspect(folder))
        for target in ("universal", "hf", "megatron:pp=4,ep=8", "dcp:dp=4"):
            clock(f"plan {target}", lambda: reshard.plan(folder, target))  # noqa: B023
    return count, clock.total


CASES: dict[str, tuple[Callable[[int], tuple[int, float]], str, list[int]]] = {
    "zero3": (zero3, "--dp", [128, 1024]),
    "experts": (experts, "--parts", [8, 1]),
    "weights": (weights, "--layers", [16, 128]),
}


def main() -> None:
    """Run the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    for _, option, sizes in CASES.values():
        parser.add_argument(option, type=int, nargs="+", default=sizes)
    options = parser.parse_args()
    work, option, _ = CASES[options.case]
    if options.alone is not None:
        pieces, seconds = work(options.alone)
        print(pieces, seconds, _peak())
        return
    before = None
    for size in getattr(options, option.removeprefix("--")):
        print(f"{options.case} {option} {size}", file=sys.stderr)
        command = [sys.executable, __file__, options.case, "--alone", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        pieces, seconds, peak = (float(word) for word in done.stdout.split())
        each = seconds / pieces
        ratio = "" if before is None else f"  x {each / before:.2f} a piece"
        print(
            f"{options.case} {option} {size}: {pieces:,.0f} pieces in {seconds:.1f} s, "
            f"{peak:.0f} MiB{ratio}"
        )
        before = each


if __name__ == "__main__":
    main()
