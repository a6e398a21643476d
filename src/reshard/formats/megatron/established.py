"""Whether tensor parallelism really cuts a parameter as its name lets expect.

A module may be whole on every rank although its name is that of a parallel one: a vision tower that
every rank runs for itself, for example. So a cut is believed where the whole size that the
arguments state, or else the bytes of the ranks, agree with it: ranks that hold the same numbers
hold copies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.cuts import Cut, is_language, is_vocabulary
from reshard.formats.megatron.self_check import samples
from reshard.storage.regular_file import open_regular
from reshard.storage.torch_file import TensorRef

_QKV = re.compile(r".*\.(linear_qkv|query_key_value)\.(weight|bias)")
_HEADS = re.compile(r".*\.mixer\.(A_log|D|dt_bias|norm\.weight)")
_OUT = re.compile(r".*\.(linear_proj|(self_attention|attention)\.dense)\.weight")
_FIRST = re.compile(r".*\.(linear_fc1|dense_h_to_4h)\.(weight|bias)\d*")
_SECOND = re.compile(r".*\.(linear_fc2|dense_4h_to_h)\.weight\d*")


def established(
    name: str,
    shape: tuple[int, ...],
    cut: Cut,
    ranks: int,
    args: Arguments,
    pieces: Sequence[TensorRef],
) -> Cut | None:
    """The cut of a parameter: that of its name, or none where every rank holds all of it; None
    where nothing tells.

    Args:  shape: on one rank.  cut: as the name says.  ranks: that it would be cut over.
           pieces: what the ranks hold of it, each once.
    """
    if cut.copied or ranks == 1:
        return cut
    size = shape[cut.dimension]
    whole = set(_sizes(name, args))
    if size * ranks in whole and size not in whole:
        return cut
    if size in whole and size * ranks not in whole:
        return Cut("[...]")
    same = _are_copies(pieces)
    if same is None:
        return None if cut.unsure else cut
    return Cut("[...]") if same else cut


def _sizes(name: str, args: Arguments) -> Iterator[int]:
    """Sizes that the arguments give to the dimension that is cut of a tensor."""
    if not is_language(name):
        return
    heads, groups = args.integer("num_attention_heads"), args.integer("num_query_groups")
    hidden = args.integer("hidden_size")
    width = args.integer("kv_channels") or (hidden // heads if heads and hidden else None)
    if _HEADS.fullmatch(name) and args.integer("mamba_head_dim"):
        size = args.integer("mamba_head_dim") or 1
        count = args.integer("mamba_num_heads") or 2 * (hidden or 0) // size
        yield count * size if name.endswith("norm.weight") else count
    elif is_vocabulary(name):
        yield from _stated(args.integer("padded_vocab_size"))
    elif _QKV.fullmatch(name) and heads and width:
        shared = groups if args.get("group_query_attention") and groups else heads
        queries = 2 * heads if args.get("attention_output_gate") else heads
        yield (queries + 2 * shared) * width
    elif _OUT.fullmatch(name) and heads and width:
        value = args.integer("v_head_dim") if args.get("multi_latent_attention") else None
        yield heads * (value or width)
    elif _SECOND.fullmatch(name):
        yield from _widths(name, args)
    elif _FIRST.fullmatch(name):
        gated = 2 if args.get("swiglu") or args.get("gated_linear_unit") else 1
        yield from (gated * size for size in _widths(name, args))


def _widths(name: str, args: Arguments) -> Iterator[int]:
    if ".shared_experts." in name:
        yield from _stated(args.integer("moe_shared_expert_intermediate_size"))
        return
    if ".experts." in name:
        moe = args.integer("moe_ffn_hidden_size")
        yield from _stated(moe or args.integer("ffn_hidden_size"))
        return
    yield from _stated(args.integer("ffn_hidden_size"))


def _stated(value: int | None) -> Iterator[int]:
    if value is not None:
        yield value


def _are_copies(pieces: Sequence[TensorRef]) -> bool | None:
    """Whether samples of every rank are the same; None where that is one number over and over."""
    if len(pieces) < 2 or any(not p.is_contiguous or p.shape != pieces[0].shape for p in pieces):
        return None
    first, *others = pieces
    seen: set[bytes] = set()
    for start, count in samples(first.numel):
        data = _read(first, start, count)
        if any(_read(other, start, count) != data for other in others):
            return False
        size = first.dtype.itemsize
        seen.update(data[at : at + size] for at in range(0, len(data), size))
    return True if len(seen) > 1 else None


def _read(ref: TensorRef, start: int, count: int) -> bytes:
    size = ref.dtype.itemsize
    with open(open_regular(ref.file), "rb", buffering=0) as stream:
        return os.pread(stream.fileno(), count * size, ref.byte_offset + start * size)
