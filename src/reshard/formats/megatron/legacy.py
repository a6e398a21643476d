"""The weights of a legacy checkpoint: every rank's state dict as local tensors.

Source: Megatron-LM, megatron/training/checkpointing.py `generate_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.cuts import LAYER, cut_of, is_expert
from reshard.formats.megatron.ranks import RankFile, Ranks
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.storage.torch_file import TensorRef

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
_BUFFERS = ("expert_bias", "local_tokens_per_expert", "inv_freq", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One model chunk of one rank file: a stage, or a virtual stage of it.

    Args:  vpp: number of the chunk on its rank.  tensors: by stored name, in order.
    """

    rank: RankFile
    vpp: int
    tensors: Mapping[str, TensorRef]

    @property
    def parameters(self) -> dict[str, TensorRef]:
        """Those that the optimizer may hold, in the order of `named_parameters`."""
        return {
            name: ref
            for name, ref in self.tensors.items()
            if not name.endswith(_BUFFERS) and not name.endswith("_extra_state")
        }


def chunks_of(rank: RankFile) -> tuple[Chunk, ...]:
    """The model chunks of a rank file, in order.

    Raises: ReshardError[no-model].
    """
    keys = sorted(
        (
            key
            for key in rank.root
            if isinstance(key, str) and key.startswith("model") and key[5:].isdigit()
        ),
        key=lambda key: int(key[5:]),
    )
    found = [rank.root[key] for key in keys] or [rank.root.get("model")]
    out = []
    for index, tree in enumerate(found):
        if not isinstance(tree, dict):
            raise source_error(
                "no-model",
                f"{rank.file} holds no model",
                notes=[f"its keys are {', '.join(map(str, rank.root))}"],
            )
        out.append(Chunk(rank, index, dict(_flatten("", tree))))
    return tuple(out)


def _flatten(prefix: str, tree: Mapping[object, object]) -> Iterator[tuple[str, TensorRef]]:
    """Tensors by dotted name; older models nest their state dicts."""
    for key, value in tree.items():
        if isinstance(value, TensorRef):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flatten(f"{prefix}{key}.", value)


def stage_layers(chunks: tuple[Chunk, ...], ranks: Ranks, vpp: int) -> tuple[int, ...]:
    """Layers of every virtual chunk, chunk major, then stage: how the layers lie in order."""
    counts = {(v, p): 0 for v in range(vpp) for p in range(ranks.pp)}
    for chunk in chunks:
        key = (chunk.vpp, chunk.rank.pp)
        for name in chunk.tensors:
            match = LAYER.search(name)
            if match is not None and not name.startswith("mtp."):
                counts[key] = max(counts[key], int(match.group(0).rsplit(".", 1)[-1]) + 1)
    return tuple(counts[v, p] for v in range(vpp) for p in range(ranks.pp))


def coord_of(chunk: Chunk, name: str, ranks: Ranks, vpp: int) -> Coord | None:
    """Where on the mesh a tensor is; None for a further copy that need not be read.

    An expert's tensor is not cut by ep but found on one ep rank; a dense one is on all of them.
    """
    rank, args = chunk.rank, ranks.args
    coord: list[tuple[str, int]] = []
    if vpp > 1:
        coord.append(("vpp", chunk.vpp))
    if ranks.pp > 1:
        coord.append(("pp", rank.pp))
    if is_expert(name):
        if args.expert_tp == ranks.tp or args.expert_tp == 1:
            coord += [("tp", rank.tp)] if ranks.tp > 1 else []
        else:
            return None
        coord += [("ep", rank.ep)] if ranks.ep > 1 else []
        return tuple(coord)
    if ranks.tp > 1:
        coord.append(("tp", rank.tp))
    if ranks.ep > 1:
        coord.append(("ep", rank.ep))
    return tuple(coord)


def stored_shape(name: str, ref: TensorRef, args: Arguments) -> tuple[int, ...]:
    """The shape that the numbers have: grouped experts' weights are views of three dimensions."""
    if not name.endswith(("experts.weight1", "experts.weight2")) or len(ref.shape) != 2:
        return ref.shape
    experts = (args.integer("num_experts") or 1) // args.size("ep")
    hidden = ref.shape[0] if name.endswith("weight1") else ref.shape[1]
    return (
        (experts, hidden, ref.numel // experts // hidden)
        if name.endswith("weight1")
        else (experts, ref.numel // experts // hidden, hidden)
    )


def local_tensor(
    name: str,
    state: str,
    coord: Coord,
    ref: TensorRef,
    file: str,
    shape: tuple[int, ...] | None = None,
) -> LocalTensor:
    """One stored tensor as it lies."""
    dense = ref.is_contiguous
    fragment = Fragment(0, ref.numel, file, ref.byte_offset, None if dense else ref.strides)
    return LocalTensor(name, state, coord, shape or ref.shape, ref.dtype, (fragment,))


def is_tied(ranks: Ranks) -> bool:
    """Whether the output layer of the last stage is a copy of the embedding."""
    return ranks.pp > 1 and not ranks.args.get("untie_embeddings_and_output_weights")


def known_name(name: str, tied: bool) -> str:
    """The parameter that a stored tensor is: a tied output layer is the embedding."""
    if tied and name == OUTPUT:
        return EMBEDDING
    return name


def is_copied(name: str, ref: TensorRef, args: Arguments) -> bool:
    """Whether all tensor-parallel ranks hold the same of it."""
    cut = cut_of(name, ref.shape, args)
    return cut is None or cut.copied
