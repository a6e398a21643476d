"""The arguments of a run of Megatron-LM or of one of its forks, as a checkpoint keeps them.

Source: Megatron-LM, megatron/training/arguments.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.models.transformer_config import arguments_beside
from reshard.storage.inert import Global, Record

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
        sizes = map(self.integer, _SIZES[axis])
        return next((size for size in sizes if size is not None), 1)

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
        sizes = {axis: self.size(axis) for axis in ("pp", "tp", "ep", "dp")}
        return ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)

    @property
    def _multiple(self) -> int:
        """Rows of the vocabulary are a multiple of it."""
        return (self.integer("make_vocab_size_divisible_by") or 128) * self.size("tp")

    def true_vocabulary(self, padded: int | None = None) -> int | None:
        """Entries of the vocabulary without padding; None where that is not known.

        Tokenizers that stand in for one add an end of document to `vocab_size`.

        Args:  padded: rows that are stored, if not as the arguments say. A size from which they
                       do not follow is none.
        """
        entries, rows = self.integer("vocab_size"), padded or self.integer("padded_vocab_size")
        if entries is not None and self.get("tokenizer_type") in _WITH_AN_ENTRY_MORE:
            entries += 1
        if entries is None or rows is None or not 0 < entries <= rows < entries + self._multiple:
            return None
        return entries

    def padding(self, true: int | None, where: str) -> Diagnostic | None:
        """A warning of rows that are padding; None where none are known to be.

        Args:  true: entries of the vocabulary.  where: the rows are left out, for people.
        """
        rows, entries = self.integer("padded_vocab_size"), self.integer("vocab_size")
        if true is None or rows is None or rows <= true:
            return None
        adds = f", to which `{self.get('tokenizer_type')}` adds one" if true != entries else ""
        return Diagnostic(
            "padded-vocabulary",
            f"{rows - true} of {rows} rows of the vocabulary are padding",
            "warning",
            notes=(
                f"the arguments say `vocab_size={entries}`{adds}; the rows behind it are left out"
                + where,
                "how many there are depends on tp, and they belong to no token",
            ),
        )

    def checked_rows(self, rows: int) -> int:
        """Rows of a stored vocabulary that are no padding for certain: Megatron may leave other
        numbers in the padding of the optimizer than in that of the weights.
        """
        return self.true_vocabulary(rows) or max(0, rows - self._multiple + 1)

    def unpadded(self, rows: int, first: int, shape: tuple[int, ...]) -> int:
        """Elements of a part of a vocabulary that are no padding for certain.

        Args:  rows: of the whole.  first: the first one of the part.  shape: of the part.
        """
        return max(0, min(self.checked_rows(rows) - first, shape[0])) * prod(shape[1:])

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
        heads, hidden = self.integer("num_attention_heads"), self.integer("hidden_size")
        if heads and not self.get("group_query_attention"):
            plain["num_query_groups"] = heads  # the argument is 1 where it is not used
        if self.values and self.get("num_experts") is None:
            plain["num_experts"] = 0  # None says that there are none
        if heads and hidden:
            plain.setdefault("kv_channels", hidden // heads)
        return {"args": plain}


def arguments_in(value: object, file: str) -> Arguments | None:
    """The arguments that an object is; None if it is none."""
    entries = value.attributes if isinstance(value, Record) else value
    if not isinstance(entries, Mapping):
        return None
    return Arguments({str(key): _plain(item) for key, item in entries.items()}, file)


def arguments_of(root: Mapping[object, object], path: str, folder: Path) -> Arguments:
    """The arguments among the entries that all ranks have in common; without them, what a
    configuration next to the tensors tells.

    Args:  path: of the file with the entries.
    Raises: ReshardError[no-arguments].
    """
    if "args" in root:
        arguments = arguments_in(root["args"], path)
        if arguments is None:
            raise no_arguments(path)
        return arguments
    values, file = arguments_beside(folder)
    return Arguments(values, file or path)


def no_arguments(path: str) -> ReshardError:
    """The error for a file that should hold arguments."""
    return source_error(
        "no-arguments",
        f"{path} has no `args`",
        notes=["they state how the run was sharded, and reshard does not guess it"],
        helps=["give a layout of your own with `--layout`, or save with Megatron's arguments"],
    )


def _is_value(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= _MAX_LISTED and all(map(_is_value, value))
    return isinstance(value, (int, str, float, bool))


def _listed(value: object) -> object:
    return [*map(_listed, value)] if isinstance(value, (list, tuple)) else value


def _plain(value: object) -> object:
    if isinstance(value, Global):
        return str(value)
    if isinstance(value, Record) and len(value.args) == 1:
        return value.args[0]  # an enum member
    return value
