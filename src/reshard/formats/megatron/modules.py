"""How the tensors of Megatron's modules lie over ranks: as `description.ucl` says of their names,
where the sizes and the bytes of a checkpoint agree with it.

A module may be whole on every rank although its name is that of a parallel one: a vision tower that
every rank runs for itself, for example. So a cut is believed where the whole size that the
arguments state, or else the bytes of the ranks, agree with it: ranks that hold the same numbers
hold copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from reshard.algebra.term import Leaf, Sum, Term
from reshard.errors import ReshardError, source_error
from reshard.language.expression import Expression, Value, known_value
from reshard.language.layout import Layout, Rule, Split
from reshard.language.library import shipped_layout
from reshard.language.pattern import NamePattern
from reshard.models.run_arguments import Arguments
from reshard.plan.catalog import LocalTensor
from reshard.plan.environment import flatten
from reshard.run.rounding import samples
from reshard.store.source_files import SourceFiles

_BIAS = re.compile(r"\.bias(\d*)$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)|(?<=[a-z])\d+$")
_SECOND = (
    ("linear_fc1.weight", "linear_fc2.weight"),
    ("dense_h_to_4h.weight", "dense_4h_to_h.weight"),
    ("experts.weight1", "experts.weight2"),
)
"""The first layer of an MLP, and the second."""

_WHOLE = Rule(NamePattern.parse("**"), None, (), True, {}, {})
"""Of a tensor that every rank has all of."""


EXTRA_STATE = "_extra_state"
_BUFFERS = ("expert_bias", "local_tokens_per_expert", "inv_freq", "running_mean", "running_var")


@cache
def description() -> Layout:
    """The layout of Megatron's modules."""
    return shipped_layout("formats/megatron/description.ucl")


@cache
def tied_names() -> Mapping[str, str]:
    """What the last stage's copy of a tied embedding is called, and the embedding."""
    return {tie.alias: tie.name for tie in description().ties}


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the routed experts."""
    return ".experts." in name


def is_language(name: str) -> bool:
    """Whether a parameter is of the language model, which the arguments are about: not of a vision
    tower, nor of what projects its outputs.
    """
    return not re.match(r"(.*\.)?(vision|image|audio|sound|video)_", name)


def is_vocabulary(name: str) -> bool:
    """Whether the rows of a parameter are those of the vocabulary, padded."""
    return any(split.truncated_to for rule in rules_of(name) for split in rule.splits.values())


def is_buffer(name: str) -> bool:
    """Whether a tensor of a state dict is no parameter."""
    return name.endswith((*_BUFFERS, EXTRA_STATE))


def rules_of(name: str) -> tuple[Rule, ...]:
    """The rules that spell most of a name: one, or several that conditions tell apart. () where
    none does.
    """
    grouped = name.endswith(("experts.weight1", "experts.weight2"))
    return _rules_of(_NUMBER.sub("0", name) if grouped else _NUMBERS.sub("0", name))


@cache
def _rules_of(name: str) -> tuple[Rule, ...]:
    """The same for all names that differ in the numbers of layers and experts alone."""
    layout = description()
    by_length: dict[int, list[Rule]] = {}
    for index, _ in layout.matches(name):
        rule = layout.rules[index]
        spelled = sum(len(piece) for piece in rule.pattern.pieces if isinstance(piece, str))
        by_length.setdefault(spelled, []).append(rule)
    return tuple(by_length[max(by_length)]) if by_length else ()


class Modules:
    """The tensors of all ranks of one checkpoint.

    Args:  shapes: on one rank, by stored name.
           sizes: ranks on the axes that cut tensors, `tp` and `etp`.
           pieces: by stored name, what the tensor-parallel ranks hold of it, each once.
           strict: whether everything must be as the arguments say.
    Raises: ReshardError[glu-mismatch | interleaved-glu].
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        args: Arguments,
        sizes: Mapping[str, int],
        pieces: Mapping[str, Sequence[LocalTensor]],
        files: SourceFiles,
        *,
        strict: bool = True,
    ) -> None:
        self._shapes = shapes
        self._args = args
        self._sizes = sizes
        self._pieces, self._files = pieces, files
        self._env = flatten(args.config())
        for name, expression in description().config.items():
            self._env[name] = _value(expression, self._env)
        self._gated = dict(self._gates(strict=strict))
        block = args.get("moe_mlp_glu_interleave_size")
        if strict and block and any(is_expert(name) for name, on in self._gated.items() if on):
            raise source_error(
                "interleaved-glu",
                f"gate and up of the experts lie interleaved in blocks of {block}",
                notes=[f"`moe_mlp_glu_interleave_size` in the arguments of {args.file}"],
                helps=["load it in Megatron, and save it without `--moe-mlp-glu-interleave-size`"],
            )

    def dims(self, name: str, vocabulary: int | None = None) -> str | None:
        """How a tensor lies, as UCL between brackets; None where nothing tells.

        Args:  vocabulary: rows of a padded one that are no padding.
        """
        rule = self._rule(name)
        if rule is None:
            return "..." if self._are_copies(name) else None
        terms = [self._term(term, rule, vocabulary) for term in rule.dims]
        return ", ".join([*terms, *(["..."] if rule.rest else [])])

    def _rule(self, name: str) -> Rule | None:
        """The rule that a tensor lies by."""
        weight = _BIAS.sub(r".weight\1", name)
        rules = rules_of(name)
        if not rules and weight != name:  # a bias is cut if the rows of its weight are
            shaped = self._rule(weight) if weight in self._shapes else None
            rules = rules_of(weight) if shaped is None else (shaped,)
            rules = tuple(_WHOLE if _cut_of(rule) != 0 else rule for rule in rules)
            if shaped is not None:
                return rules[0]
        env = {**self._env, "gated": self._is_gated(weight)}
        rules = tuple(
            rule for rule in rules if not rule.when or _value(rule.when, env) is not False
        )
        cut = next((rule for rule in rules if _cut_of(rule) is not None), None)
        if cut is None:
            return rules[0] if rules else None
        return self._established(name, cut, rules[0])

    def _established(self, name: str, cut: Rule, usual: Rule) -> Rule | None:
        """Whether a tensor is really cut.

        Args:  usual: the rule that counts where nothing tells.
        """
        dimension = _cut_of(cut)
        assert dimension is not None
        size = self._shapes[name][dimension]
        ranks = self._sizes["etp" if is_expert(name) else "tp"]
        whole, is_even = self._whole(cut, dimension) if is_language(name) else (None, True)
        if not is_even:
            is_cut = size * ranks == whole
            return cut if is_cut else _WHOLE if self._are_copies(name) else None
        if ranks == 1:
            return usual
        if whole is not None and (size == whole) != (size * ranks == whole):
            return _WHOLE if size == whole else cut
        same = self._are_copies(name)
        return usual if same is None else _WHOLE if same else cut

    def _gates(self, *, strict: bool) -> Iterator[tuple[str, bool]]:
        """Every first layer of an MLP, and whether it holds gate and up: it then has twice as many
        rows as the second layer has columns. The arguments speak of the language model alone.

        Source: megatron/core/transformer/mlp.py `MLP.__init__`, core 0.12 to 0.20.
        """
        has_gates = self._stated_gates()
        for name, shape in self._shapes.items():
            second = self._shapes.get(_second(name), ())
            if len(second) < 2:
                continue
            grouped = len(second) == 3
            rows, width = shape[-1 if grouped else 0], second[-2 if grouped else 1]
            if strict and has_gates is not None and is_language(name):
                expected = 2 * width if has_gates else width
                if rows != expected:
                    raise source_error(
                        "glu-mismatch",
                        f"`{name}` has {rows} rows for {width} columns of the layer behind it",
                        notes=[
                            f"the run had {'a' if has_gates else 'no'} gated MLP, which has "
                            f"{expected}",
                            f"`swiglu` in the arguments of {self._args.file}",
                        ],
                        helps=[
                            "say how it lies in a layout of your own, and give it with `--layout`"
                        ],
                    )
            yield name, rows == 2 * width

    def _stated_gates(self) -> bool | None:
        values = [self._args.get(name) for name in ("swiglu", "gated_linear_unit")]
        return None if values == [None, None] else any(values)

    def _is_gated(self, weight: str) -> bool:
        return self._gated.get(weight, bool(self._stated_gates()) and is_language(weight))

    def _whole(self, cut: Rule, dimension: int) -> tuple[int | None, bool]:
        """The size of the dimension that is cut, over all ranks, as the arguments tell; and whether
        all parts of it are of one size.
        """
        sizes = [cut.axes[axis].size for axis in _axes(cut.dims[dimension])]
        values = [None if size is None else _value(size, self._env) for size in sizes]
        numbers = [value for value in values if isinstance(value, int)]
        return sum(numbers) if len(numbers) == len(sizes) else None, len(set(sizes)) == 1

    def _term(self, term: Term, rule: Rule, vocabulary: int | None) -> str:
        """A dimension as UCL; parts of several sizes say these."""
        axes = _axes(term)
        is_even = len({rule.axes[axis].size for axis in axes}) == 1
        out = []
        for axis in axes:
            split, size = rule.splits.get(axis, Split()), rule.axes[axis].size
            text = "_" if axis.startswith("_") else axis
            if not is_even and size is not None:
                text += f":{_value(size, self._env)}"
            for mesh in split.over:
                same = mesh == "etp" and self._sizes["etp"] == self._sizes["tp"]
                text += f" over {'tp' if same else mesh}"
            if split.truncated_to is not None and vocabulary is not None:
                text += f" truncated to {vocabulary}"
            out.append(text)
        return f"({' + '.join(out)})" if isinstance(term, Sum) else out[0]

    def _are_copies(self, name: str) -> bool | None:
        """Whether samples of every rank are the same; None where that is one number over and over,
        or where no other rank has it.
        """
        pieces = self._pieces.get(name, ())
        runs = [fragment for piece in pieces for fragment in piece.fragments]
        if len(pieces) < 2 or len({p.shape for p in pieces}) > 1 or any(r.strides for r in runs):
            return None
        size = pieces[0].dtype.itemsize
        values: set[bytes] = set()
        for start, count in samples(pieces[0].numel):
            at, nbytes = size * start, size * count
            first, *copies = (self._files.pread(r.file, r.byte_offset + at, nbytes) for r in runs)
            if any(data != first for data in copies):
                return False
            values.update(first[i : i + size] for i in range(0, nbytes, size))
        return True if len(values) > 1 else None


def _second(name: str) -> str:
    """The second layer of the MLP of a first layer's weight; "" for what is none."""
    for first, second in _SECOND:
        head, match, number = name.rpartition(first)
        if match and (not number or number.isdecimal()):
            return f"{head}{second}{number}"
    return ""


def _cut_of(rule: Rule) -> int | None:
    """The dimension of a tensor that tensor-parallel ranks share; None where each has all of it."""
    for dimension, term in enumerate(rule.dims):
        splits = (rule.splits.get(axis, Split()) for axis in _axes(term))
        if any(mesh in split.over for split in splits for mesh in ("tp", "etp")):
            return dimension
    return None


def _axes(term: Term) -> tuple[str, ...]:
    """The axes of a dimension: one, or one for each part."""
    if isinstance(term, Sum):
        return tuple(axis for part in term.parts for axis in _axes(part.term))
    return (term.axis,) if isinstance(term, Leaf) else ()


def _value(expression: Expression, env: Mapping[str, object]) -> Value | None:
    """What an expression says; None where the arguments do not tell."""
    try:
        return known_value(expression, env)
    except ReshardError:
        return None
