"""The arguments of the run, as a checkpoint keeps them.

Source: Megatron-LM, megatron/training/arguments.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.storage.inert import Global, Record
from reshard.storage.torch_file import TorchFile

_SIZES = {
    "tp": ("tensor_model_parallel_size", "model_parallel_size"),
    "pp": ("pipeline_model_parallel_size",),
    "ep": ("expert_model_parallel_size",),
    "dp": ("data_parallel_size",),
}


_WITH_AN_ENTRY_MORE = ("NullTokenizer", "NullMultimodalTokenizer")
"""Source: megatron/training/tokenizer/tokenizer.py `_NullTokenizer`, megatron/core/tokenizers."""

_MAX_LISTED = 1000
"""Entries of an argument that is a list: one for each layer, say."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """`argparse.Namespace` as a mapping."""

    values: Mapping[str, object]
    file: str

    def get(self, name: str) -> object:
        """One argument; None when it is not there."""
        return self.values.get(name)

    def integer(self, name: str) -> int | None:
        """One argument if it is an integer."""
        value = self.values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def size(self, axis: str) -> int:
        """The size of a mesh axis; 1 when the run did not have it."""
        for name in _SIZES[axis]:
            value = self.integer(name)
            if value is not None:
                return value
        return 1

    @property
    def expert_tp(self) -> int:
        """Ranks that share one expert; Megatron's default is the tensor-parallel size."""
        return self.integer("expert_tensor_parallel_size") or self.size("tp")

    @property
    def is_precise(self) -> bool:
        """Whether the optimizer may keep of its masters what the weights do not have."""
        return self.get("use_precision_aware_optimizer") is True

    def mesh(self) -> str:
        """The axes of the run that have several ranks, for people."""
        sizes = {"pp": self.size("pp"), "tp": self.size("tp"), "ep": self.size("ep")}
        sizes["dp"] = self.size("dp")
        return ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)

    def true_vocabulary(self, padded: int | None = None) -> int | None:
        """Entries of the vocabulary without padding; None where that is not known.

        Args:  padded: rows that are stored, if not as the arguments say. A size from which they
                       do not follow is none.
        """
        entries = self._entries()
        rows = padded or self.integer("padded_vocab_size")
        multiple = (self.integer("make_vocab_size_divisible_by") or 128) * self.size("tp")
        if entries is None or rows is None or not 0 < entries <= rows or rows - entries >= multiple:
            return None
        return entries

    def _entries(self) -> int | None:
        """Entries that the tokenizer has: those that stand in for one add an end of document to
        `vocab_size` of their own.
        """
        entries = self.integer("vocab_size")
        adds_one = self.get("tokenizer_type") in _WITH_AN_ENTRY_MORE
        return entries + 1 if entries is not None and adds_one else entries

    def checked_rows(self, rows: int) -> int:
        """Rows of a stored vocabulary that are no padding for certain: Megatron may leave other
        numbers in the padding of the optimizer than in that of the weights.
        """
        multiple = (self.integer("make_vocab_size_divisible_by") or 128) * self.size("tp")
        return self.true_vocabulary(rows) or max(0, rows - multiple + 1)

    def config(self, rows: int | None = None) -> dict[str, object]:
        """The arguments that are plain values, for a layout's expressions (`args.num_layers`).

        Args:  rows: of the embedding, padding included; they stand in for an argument of theirs.
        """
        plain = {k: _listed(v) for k, v in self.values.items() if _is_value(v)}
        true = self.true_vocabulary()
        if true is not None:
            plain["vocab_size"] = true
        elif self.integer("padded_vocab_size") is not None:
            plain.pop("vocab_size", None)
        if rows:
            plain.setdefault("padded_vocab_size", rows)
        if "window_size" in self.values and self.get("window_size") is None:
            plain["window_size"] = [-1, -1]  # None says that every token is seen
        heads = self.integer("num_attention_heads")
        if heads and not self.get("group_query_attention"):
            plain["num_query_groups"] = heads  # the argument is 1 where it is not used
        if self.values and self.get("num_experts") is None:
            plain["num_experts"] = 0  # None says that there are none
        hidden = self.integer("hidden_size")
        if heads and hidden and "kv_channels" not in plain:
            plain["kv_channels"] = hidden // heads
        return {"args": plain}


def arguments_in(value: object, file: str) -> Arguments | None:
    """The arguments that an object is; None if it is none."""
    if isinstance(value, Record):
        return Arguments({str(k): _plain(v) for k, v in value.attributes.items()}, file)
    if isinstance(value, dict):
        return Arguments({str(k): _plain(v) for k, v in value.items()}, file)
    return None


def arguments_of(opened: TorchFile) -> Arguments:
    """The arguments in a file's root.

    Raises: ReshardError[no-arguments].
    """
    root = opened.root
    arguments = arguments_in(root.get("args") if isinstance(root, dict) else None, opened.path)
    if arguments is not None:
        return arguments
    raise no_arguments(opened.path)


def no_arguments(path: str) -> ReshardError:
    """The error for a file that should hold arguments."""
    return source_error(
        "no-arguments",
        f"{path} has no `args`",
        notes=["they say how the run was cut: nothing is guessed without them"],
        helps=["give a layout of your own with `--layout`, or save with Megatron's arguments"],
    )


def _is_value(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= _MAX_LISTED and all(_is_value(item) for item in value)
    return isinstance(value, (int, str, float, bool))


def _listed(value: object) -> object:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: object) -> object:
    if isinstance(value, Global):
        return str(value)
    if isinstance(value, Record) and len(value.args) == 1:
        return value.args[0]  # an enum member
    return value
