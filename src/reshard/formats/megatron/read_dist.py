"""Reads a `torch_dist` checkpoint.

Source: megatron/core/dist_checkpointing/strategies/torch.py (core 0.5 to 0.20).
"""

from __future__ import annotations

from pathlib import Path

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.megatron.arguments import Arguments, arguments_of
from reshard.formats.megatron.cuts import is_vocabulary
from reshard.formats.megatron.dist_names import FlatKey, StateKey, key_of
from reshard.formats.megatron.dist_optimizer import dist_groups
from reshard.formats.megatron.flat_dist import COPY, flat_tensors
from reshard.formats.megatron.legacy import is_buffer
from reshard.formats.megatron.master_check import check_masters
from reshard.formats.megatron.model_space import original_shape, unfolded
from reshard.formats.megatron.oddities import folder_oddities, vocabulary_oddity, without_optimizer
from reshard.formats.megatron.training import Groups, small_tensor, training_of
from reshard.plan.catalog import Catalog, LocalTensor
from reshard.storage.bounded_json import load_bounded
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata
from reshard.storage.objects import to_json
from reshard.storage.regular_file import FileTooLargeError, read_regular, unreadable
from reshard.storage.torch_file import open_torch_file

_MAX_NBYTES = 1 << 20  # of `metadata.json`

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout megatron_dist {
    "**" = [...] optional
}
"""


def read_dist(folder: Path) -> Catalog:
    """The catalog of a folder with `metadata.json`.

    Raises: ReshardError[unsupported-backend | no-arguments], and what `read_metadata` and
            `ChunkReader` raise. What is wrong with the optimizer alone is kept in the catalog.
    """
    check_backend(folder)
    metadata = read_metadata(folder)
    chunks = ChunkReader(folder)
    for file in (".metadata", "metadata.json", "common.pt"):
        chunks.know(file)
    common = open_torch_file(folder / "common.pt")
    root = common.root if isinstance(common.root, dict) else {}
    args = arguments_of(common) if "args" in root else Arguments({}, common.path)
    weights: list[LocalTensor] = []
    states: list[LocalTensor] = []
    flat: list[tuple[FlatKey, StoredTensor]] = []
    withheld: tuple[Diagnostic, ...] = ()
    raw = {item.name: chunks.object_of(item) for item in metadata.objects}
    groups = Groups()
    try:
        for stored in metadata.tensors:
            key = key_of(stored.name)
            if isinstance(key, FlatKey):
                flat.append((key, stored))
                continue
            tensor = _tensor(key, stored, metadata, chunks)
            (weights if key.state in ("param", "extra") else states).append(tensor)
        check_masters(folder, [*weights, *states], args)
        if flat or any(".param_state/" in name for name in raw):
            states += flat_tensors(folder, flat, raw, args, chunks, weights)
        chunks.refuse_overlaps()
        groups, steps = dist_groups(root.get("optimizer"), raw, [*weights, *states])
        states += steps
    except ReshardError as error:
        if not {item.code for item in error.diagnostics} <= _OF_OPTIMIZER:
            raise
        withheld, states, groups = error.diagnostics, [], Groups()
    objects = {
        name: to_json(value, tensor=small_tensor)
        for name, value in raw.items()
        if ".param_state/" not in name
    }
    copies = 1 + max((index for t in states for _, index in t.coord), default=0)
    vocabulary = _vocabulary(weights, args)
    oddities = [*folder_oddities(folder, root.get("iteration"))]
    if not states and not withheld:
        oddities.append(without_optimizer(folder))
    oddities += vocabulary_oddity(args.integer("padded_vocab_size"), vocabulary)
    return Catalog(
        format="megatron",
        version=str(root.get("checkpoint_version", "")),
        root=str(folder.resolve()),
        mesh={COPY: copies} if copies > 1 else {},
        tensors=(*weights, *states),
        layout=_layout([t.name for t in weights if t.state == "param"], vocabulary, copies > 1),
        layout_name="megatron_dist",
        training=training_of(
            root, groups, [], {"form": "torch_dist", "saved_over": args.mesh(), "objects": objects}
        ),
        config=args.config(),
        buffers=tuple(t.name for t in weights if t.state == "param" and is_buffer(t.name)),
        files=tuple(chunks.files.values()),
        oddities=tuple(oddities),
        withheld=withheld,
    )


_OF_OPTIMIZER = frozenset(
    ("shifted-optimizer", "buffer-mismatch", "bad-model-space", "ambiguous-optimizer-ids")
)
"""Faults that leave the weights as they are."""


def _tensor(
    key: StateKey, stored: StoredTensor, metadata: Metadata, chunks: ChunkReader
) -> LocalTensor:
    shape = original_shape(metadata, stored.name)
    if shape is None or shape == stored.shape:
        fragments, shape = chunks.fragments(stored), stored.shape
    else:
        fragments = unfolded(chunks, stored, shape)
    return LocalTensor(key.name, key.state, (), shape, stored.dtype, fragments)


def _vocabulary(weights: list[LocalTensor], args: Arguments) -> int | None:
    """The true size of the vocabulary, where the arguments tell it and it is not what is stored."""
    rows = next((t.shape[0] for t in weights if t.name.endswith("word_embeddings.weight")), None)
    true = args.true_vocabulary(rows)
    return true if true != rows else None


def _layout(names: list[str], vocabulary: int | None, is_copied: bool) -> str:
    """One rule for all tensors; more where the vocabulary is padded."""
    cut = [name for name in names if is_vocabulary(name)] if vocabulary is not None else []
    text = LAYOUT.replace("{\n", f"{{\n    mesh {COPY}\n\n") if is_copied else LAYOUT
    if not cut:
        return text
    heads = {name.partition(".")[0] for name in cut}
    rules = dict.fromkeys(cut, f"[rows truncated to {vocabulary}, ...]")
    for name in names:
        head, dot, _ = name.partition(".")
        rules.setdefault(f"{head}.**" if dot and head not in heads else name, "[...]")
    width = max(map(len, rules)) + 2
    lines = [f"    {chr(34) + name + chr(34):<{width}} = {dims}" for name, dims in rules.items()]
    return text.split('    "**"')[0] + "\n".join(lines) + "\n}\n"


def check_backend(folder: Path) -> None:
    try:
        stated = load_bounded(read_regular(folder / "metadata.json", _MAX_NBYTES))
        backend = stated.get("sharded_backend") if isinstance(stated, dict) else None
    except (OSError, FileTooLargeError) as error:
        raise unreadable(folder / "metadata.json", error) from None
    except ValueError:
        backend = None
    if backend != "torch_dist":
        raise source_error(
            "unsupported-backend",
            f"{folder} is stored by backend `{backend}`",
            notes=["`torch_dist` is read; `zarr` was removed from Megatron-core in 0.16"],
            helps=["convert it with the Megatron that wrote it"],
        )
