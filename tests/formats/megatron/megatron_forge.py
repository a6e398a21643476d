"""Legacy checkpoints of Megatron made by hand from whole tensors, at any mesh; an oracle.

A model is a list of parameters with their whole shapes and the way they are cut.  Every element of
every state has a number of its own, so that a wrong piece names itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.storage.inert import Record
from reshard.storage.torch_writer import NewStorage, NewTensor, plan_torch_file

Array = np.ndarray[Any, Any]
Whole = dict[tuple[str, str], Array]

STATES = ("param", "exp_avg", "exp_avg_sq")
LAYERS = "decoder.layers."
EXPERTS = "mlp.experts.local_experts."


def save(path: Path, root: object) -> None:
    """What `torch.save(root, path)` writes, with arrays in place of tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(root, path.stem))


def image_bytes(root: object, stem: str = "archive") -> bytes:
    """The same as bytes."""
    data: dict[int, bytes] = {}
    keep: list[object] = []

    def convert(value: object) -> object:
        if isinstance(value, np.ndarray):
            dtype = {"float32": DType.F32, "uint16": DType.BF16}[value.dtype.name]
            storage = NewStorage(dtype, value.size)
            data[id(storage)] = np.ascontiguousarray(value).tobytes()
            keep.append(storage)
            return NewTensor(storage, 0, value.shape, row_major(value.shape))
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(item) for item in value)
        return value

    image = plan_torch_file(convert(root), stem)
    out = bytearray(image.nbytes)
    for at, raw in image.head:
        out[at : at + len(raw)] = raw
    crcs = {}
    for slot in image.storages:
        raw = data[id(slot.storage)]
        out[slot.byte_offset : slot.byte_offset + len(raw)] = raw
        crcs[slot.key] = zlib.crc32(raw)
    for at, raw in image.tail(crcs):
        out[at : at + len(raw)] = raw
    return bytes(out)


def namespace(**values: object) -> Record:
    """An `argparse.Namespace`."""
    return Record("argparse", "Namespace", (), "newobj", [dict(values)])


@dataclass(frozen=True)
class Kind:
    """A parameter of a model.

    Args:  name: within its layer, or of the model.  shape: whole.
           cut: `copy`, `rows`, `columns`, or `halves` (gate and up, each cut by rows).
    """

    name: str
    shape: tuple[int, ...]
    cut: str = "copy"

    def piece(self, whole: Array, rank: int, ranks: int) -> Array:
        """What one tensor-parallel rank holds."""
        if self.cut == "copy" or ranks == 1:
            return whole
        if self.cut == "columns":
            return np.split(whole, ranks, axis=1)[rank]
        if self.cut == "rows":
            return np.split(whole, ranks, axis=0)[rank]
        halves = np.split(whole, 2, axis=0)
        return np.concatenate([np.split(half, ranks, axis=0)[rank] for half in halves])


@dataclass(frozen=True)
class Forge:
    """A run whose files are written by `write`.

    Args:  stages: layers of every chunk, chunk major, then stage.
           experts: how many there are in each layer; 0 for none.
           tied: whether the last stage has a copy of the embedding.
           wd_first: whether the group with weight decay comes first on every stage.
           change: called with the rank's place and the tree before it is saved.
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 0
    stages: tuple[int, ...] = (2,)
    experts: int = 0
    tied: bool = False
    bias: bool = True
    gated: bool = True
    hidden: int = 8
    width: int = 12
    vocab: int = 24
    iteration: int = 3
    optimizer: str = "adam"
    wd_first: bool = True
    args: Mapping[str, object] = field(default_factory=dict)
    change: Callable[[tuple[int, int, int], dict[str, Any]], None] | None = None

    @property
    def expert_tp(self) -> int:
        """Ranks that share one expert."""
        return self.etp or self.tp

    @property
    def layers(self) -> int:
        """Of the whole model."""
        return sum(self.stages)

    def layer(self) -> list[Kind]:
        """The parameters of a layer, in the order of the module."""
        h, w = self.hidden, self.width
        first = Kind("mlp.linear_fc1.weight", ((2 if self.gated else 1) * w, h))
        first = replace(first, cut="halves" if self.gated else "rows")
        second = Kind("mlp.linear_fc2.weight", (h, w), "columns")
        kinds = [
            Kind("input_layernorm.weight", (h,)),
            Kind("self_attention.linear_proj.weight", (h, h), "columns"),
            *([Kind("self_attention.linear_proj.bias", (h,))] if self.bias else []),
            Kind("self_attention.linear_qkv.weight", (3 * h, h), "rows"),
            *([Kind("self_attention.linear_qkv.bias", (3 * h,), "rows")] if self.bias else []),
            Kind("pre_mlp_layernorm.weight", (h,)),
        ]
        if not self.experts:
            return [*kinds, first, second]
        kinds.append(Kind("mlp.router.weight", (self.experts, h)))
        for expert in range(self.experts):
            for kind in (first, second):
                kinds.append(replace(kind, name=kind.name.replace("mlp.", f"{EXPERTS}{expert}.")))
        return kinds

    def outside(self) -> tuple[list[Kind], list[Kind]]:
        """The parameters before and behind the layers."""
        embedding = Kind("embedding.word_embeddings.weight", (self.vocab, self.hidden), "rows")
        output = Kind("output_layer.weight", (self.vocab, self.hidden), "rows")
        norm = Kind("decoder.final_layernorm.weight", (self.hidden,))
        return [embedding], [norm] if self.tied else [norm, output]

    def whole(self) -> Whole:
        """Every state of every parameter, by global name."""
        before, after = self.outside()
        named = [(kind.name, kind.shape) for kind in before]
        for layer in range(self.layers):
            named += [(f"{LAYERS}{layer}.{kind.name}", kind.shape) for kind in self.layer()]
        named += [(kind.name, kind.shape) for kind in after]
        out: Whole = {}
        for number, (name, shape) in enumerate(named):
            for index, state in enumerate(STATES):
                first = 100_000 * number + 10_000 * index
                size = int(np.prod(shape))
                out[name, state] = (first + np.arange(size, dtype=np.float32)).reshape(shape)
        return out

    def arguments(self) -> dict[str, object]:
        """The run's arguments."""
        return {
            "num_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": 2,
            "num_experts": self.experts or None,
            "swiglu": self.gated,
            "padded_vocab_size": self.vocab,
            "make_vocab_size_divisible_by": self.vocab // self.tp,
            "untie_embeddings_and_output_weights": not self.tied,
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "expert_model_parallel_size": self.ep,
            "expert_tensor_parallel_size": self.expert_tp,
            "data_parallel_size": self.ep,
            **self.args,
        }

    def ranks(self) -> list[tuple[int, int, int]]:
        """tp, pp and ep rank of every file: those that a run writes."""
        found = []
        for pp in range(self.pp):
            size = max(self.tp, self.expert_tp * self.ep)
            for rank in range(size):
                place = (rank % self.tp, pp, rank // self.expert_tp % self.ep)
                if place not in found:
                    found.append(place)
        return sorted(found)

    def chunk(self, place: tuple[int, int, int], index: int) -> list[tuple[str, str, Kind]]:
        """Stored name, global name, and kind of what a rank's chunk holds, in order."""
        _, pp, ep = place
        number = index * self.pp + pp
        before, after = self.outside()
        out = [(kind.name, kind.name, kind) for kind in before] if number == 0 else []
        first = sum(self.stages[:number])
        for local in range(self.stages[number]):
            for kind in self.layer():
                name = self._local(kind.name, ep)
                if name is not None:
                    whole = f"{LAYERS}{first + local}.{kind.name}"
                    out.append((f"{LAYERS}{local}.{name}", whole, kind))
        if number == len(self.stages) - 1:
            out += [(kind.name, kind.name, kind) for kind in after]
            if self.tied and len(self.stages) > 1:
                out.append(("output_layer.weight", before[0].name, before[0]))
        return out

    def _local(self, name: str, ep: int) -> str | None:
        """A name with its expert counted on the rank; None where another rank has it."""
        if not name.startswith(EXPERTS):
            return name
        number, _, rest = name.removeprefix(EXPERTS).partition(".")
        count = self.experts // self.ep
        if int(number) // count != ep:
            return None
        return f"{EXPERTS}{int(number) % count}.{rest}"

    def piece(self, place: tuple[int, int, int], kind: Kind, whole: Array) -> Array:
        """What a rank holds of a whole tensor."""
        ranks = self.expert_tp if kind.name.startswith(EXPERTS) else self.tp
        return kind.piece(whole, place[0] % ranks, ranks)

    def tree(self, place: tuple[int, int, int], whole: Whole) -> dict[str, Any]:
        """What the file of a rank holds."""
        out: dict[str, Any] = {
            "args": namespace(**self.arguments()),
            "checkpoint_version": 3.0,
            "iteration": self.iteration,
        }
        entries = []
        for index in range(self.vpp):
            found = self.chunk(place, index)
            key = "model" if self.vpp == 1 else f"model{index}"
            out[key] = {
                name: self.piece(place, kind, whole[own, "param"]) for name, own, kind in found
            }
            entries += found
        out["optimizer"] = self._optimizers(place, whole, entries)
        out["opt_param_scheduler"] = {"num_steps": 12}
        if self.change is not None:
            self.change(place, out)
        return out

    def _optimizers(
        self,
        place: tuple[int, int, int],
        whole: Whole,
        entries: Sequence[tuple[str, str, Kind]],
    ) -> object:
        if self.ep == 1:
            return self._optimizer(place, whole, entries, expert=False)
        dense = [item for item in entries if not item[2].name.startswith(EXPERTS)]
        experts = [item for item in entries if item[2].name.startswith(EXPERTS)]
        return [
            self._optimizer(place, whole, dense, expert=False),
            self._optimizer(place, whole, experts, expert=True),
        ]

    def _optimizer(
        self,
        place: tuple[int, int, int],
        whole: Whole,
        entries: Sequence[tuple[str, str, Kind]],
        *,
        expert: bool,
    ) -> dict[str, Any]:
        decayed = [item for item in entries if len(item[2].shape) > 1]
        others = [item for item in entries if len(item[2].shape) == 1]
        groups, states, number = [], {}, 0
        for members, wd in [(decayed, 1.0), (others, 0.0)][:: 1 if self.wd_first else -1]:
            if not members:
                continue
            ids = list(range(number, number + len(members)))
            number += len(members)
            group: dict[str, Any] = {"wd_mult": wd, "lr": 0.5, "is_expert_parallel": expert}
            group |= {"params": ids} | ({"step": 3} if self.optimizer == "fused" else {})
            groups.append(group)
            for index, (_, own, kind) in zip(ids, members, strict=True):
                states[index] = {
                    state: self.piece(place, kind, whole[own, state]) for state in STATES[1:]
                }
                if self.optimizer == "adam":
                    states[index]["step"] = np.array(3.0, np.float32)
        return {"state": states, "param_groups": groups}

    def folder(self, place: tuple[int, int, int]) -> str:
        """The name of a rank's folder."""
        tp, pp, ep = place
        name = f"mp_rank_{tp:02d}" + (f"_{pp:03d}" if self.pp > 1 else "")
        return name + (f"_{ep:03d}" if self.ep > 1 else "")

    def write(self, root: Path) -> Path:
        """Write every file, and the tracker; returns `root`."""
        whole = self.whole()
        folder = root / f"iter_{self.iteration:07d}"
        for place in self.ranks():
            save(folder / self.folder(place) / "model_optim_rng.pt", self.tree(place, whole))
        (root / "latest_checkpointed_iteration.txt").write_text(str(self.iteration))
        return root
