"""The rule of every parameter of a tensor-parallel checkpoint, by `universal_checkpoint_info`.

Source: DeepSpeed 0.19.8, checkpoint/ds_to_universal.py `merge_tp_slices`, whose order of
precedence this is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from reshard.errors import ReshardError, layout_error, source_error
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.sections import (
    AVERAGED,
    FORMAT_VERSION,
    AffineMap,
    Section,
    affine_body,
    check_affine_map,
    copied_body,
    cut_body,
    read_affine_map,
)

Shape = tuple[int, ...]

KEY = "universal_checkpoint_info"
REPLICATED = "tp_replicated_parameter_patterns"
AVERAGE = "parameter_to_average_patterns"
ROW_PARALLEL = "parameter_with_row_parallelism_patterns"
TWO_PARTS = "parameter_with_2_sub_params_cat_dim_0"
VOCABULARY = "vocabulary_parameter_patterns"
UNSUPPORTED = "autotp_unsupported_parameter_patterns"
_SUB_PARAMS, _WIDTHS, _ROWS = (
    "parameter_with_sub_params",
    "sub_param_shard_widths",
    "original_vocab_size",
)
_AFFINE = "affine_map"
_LISTS = (REPLICATED, AVERAGE, ROW_PARALLEL, TWO_PARTS, VOCABULARY)
_OWN_LAYOUT = "give a layout of your own with `--layout FILE`"


def same_rules(first: Node, second: Node) -> bool:
    """Whether two files say the same about tp; other entries may differ from rank to rank."""
    one, two = first.mapping(), second.mapping()
    return all(one.get(k) == two.get(k) for k in (*_LISTS, UNSUPPORTED, _AFFINE, _ROWS, _WIDTHS))


@dataclass(frozen=True, slots=True)
class SubParams:
    """One entry of `parameter_with_sub_params`.

    Args:  shape: one size per dimension of a view of the parameter; -1 for one that is left open;
           the sizes of the parts where it is cut.
           widths: by part, elements on every tp rank; None if the writer does not say.
    """

    shape: tuple[int | tuple[int, ...], ...]
    dim: int
    widths: tuple[tuple[int, ...], ...] | None


class UniversalInfo:
    """`universal_checkpoint_info` of one file: how parameters lie over tp ranks.

    Its patterns match from the start of a name, not all of it.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._known: dict[str, list[tuple[re.Pattern[str], Node]]] = {}

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.node.file

    @property
    def vocabulary_size(self) -> int:
        """Rows of the vocabulary without padding."""
        return self.node.at(_ROWS).integer()

    def matches(self, key: str, name: str) -> bool:
        """Whether a name is in one of the lists.

        Raises: ReshardError[ambiguous-pattern | bad-pattern].
        """
        return self._one(key, name) is not None

    def unsupported(self, name: str) -> str | None:
        """Why DeepSpeed itself says that a parameter cannot be put together."""
        return next((str(node.value) for node in self._matching(UNSUPPORTED, name)), None)

    def is_default(self, name: str) -> bool:
        """Whether nothing is said of a parameter, so that it is joined along dimension 0."""
        is_listed = any(self.matches(key, name) for key in _LISTS)
        return not is_listed and self.affine_map(name) is None and self.sub_params(name) is None

    def sub_params(self, name: str) -> SubParams | None:
        """The parts of a parameter that is several in one."""
        return next((item for regex, item in self._sub_params if regex.match(name)), None)

    def affine_map(self, name: str) -> AffineMap | None:
        """The affine map of a parameter."""
        version = self.node.find(_AFFINE, "version")
        if version is not None and version.integer() > FORMAT_VERSION:
            raise source_error(
                "unknown-version",
                f"`{_AFFINE}` of {self.file} has version {version.integer()}",
                notes=[f"versions up to {FORMAT_VERSION} are known"],
                helps=["use a newer reshard"],
            )
        node = self._one(_AFFINE, name)
        return None if node is None else read_affine_map(node, name)

    def _one(self, key: str, name: str) -> Node | None:
        nodes = self._matching(key, name)
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        shown = [f"`{node.path if key == _AFFINE else node.text()}`" for node in nodes[:4]]
        raise source_error(
            "ambiguous-pattern",
            f"{len(nodes)} patterns of `{key}` match `{name}`",
            notes=[*shown, f"`{KEY}` in {self.file}"],
            helps=[_OWN_LAYOUT],
        )

    def _matching(self, key: str, name: str) -> list[Node]:
        """What stands behind the patterns that match, in a dict; the patterns, in a list."""
        if key not in self._known:
            node = self.node.find(_AFFINE, "params") if key == _AFFINE else self.node.get(key)
            entries: Iterable[tuple[str, Node]] = ()
            if node is not None:
                listed = node.entries() if node.is_dict else ((n.text(), n) for n in node.items())
                entries = listed
            self._known[key] = [(self._compile(text, key), item) for text, item in entries]
        return [item for regex, item in self._known[key] if regex.match(name)]

    @cached_property
    def _sub_params(self) -> list[tuple[re.Pattern[str], SubParams]]:
        node = self.node.get(_SUB_PARAMS)
        return [] if node is None else [pair for n in node.items() for pair in self._parts(n)]

    def _parts(self, node: Node) -> Iterator[tuple[re.Pattern[str], SubParams]]:
        entry = node.fields()  # a dict, or DeepSpeed's SubparamShape
        shape = tuple(
            size.shape() if isinstance(size.value, tuple | list) else size.integer()
            for size in entry.at("shape").items()
        )
        dim = entry.at("partition_dim").integer()
        for pattern in entry.at("patterns").items():
            node_of_widths = self.node.find(_WIDTHS, pattern.text())
            widths = (
                None
                if node_of_widths is None
                else tuple(part.shape() for part in node_of_widths.items())
            )
            yield self._compile(pattern.text(), node.path), SubParams(shape, dim, widths)

    def _compile(self, pattern: str, key: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise source_error(
                "bad-pattern",
                f"`{pattern}` in `{key}` of {self.file} is no regular expression",
                notes=[f"{error}"],
            ) from None


# The rule of one parameter.


def tp_body(info: UniversalInfo, name: str, shapes: Sequence[Shape]) -> str | None:
    """The right side of a parameter's rule; None if its affine map is beyond what a rule says.

    Args:  shapes: on every tp rank.
    Raises: ReshardError[unsupported-parameter | affine-mismatch | sub-params-mismatch | ...].
    """

    def refuse(reason: str) -> ReshardError:
        return layout_error(
            "unsupported-parameter",
            f"`{name}` cannot be put together from its shards",
            notes=[reason, f"by `{KEY}` in {info.file}"],
            helps=[_OWN_LAYOUT],
        )

    reason = info.unsupported(name)
    if reason is not None:
        raise refuse(reason)
    affine = info.affine_map(name)
    if affine is not None:
        check_affine_map(affine, shapes)
        return affine_body(affine)
    ndim = len(shapes[0])
    rows = info.vocabulary_size if info.matches(VOCABULARY, name) else None
    if info.matches(REPLICATED, name):
        return copied_body(ndim, rows if shapes[0][:1] != (rows,) else None)
    if info.matches(AVERAGE, name):
        if rows is not None:
            raise refuse("it is averaged and has a padded vocabulary")
        return AVERAGED
    two_parts, sub_params = info.matches(TWO_PARTS, name), info.sub_params(name)
    if two_parts or sub_params is not None:
        if rows is not None:
            raise refuse("it has sub-parameters and a padded vocabulary")
        parts = _Parts(info, name, shapes)
        return parts.two() if two_parts or sub_params is None else parts.body(sub_params)
    dim = 1 if info.matches(ROW_PARALLEL, name) else 0
    if ndim <= dim:
        raise refuse(f"it has {ndim} dimensions and is joined along dimension {dim}")
    widths = tuple(shape[dim] for shape in shapes)
    truncated_to = rows if dim or rows != sum(widths) else None
    return cut_body(dim, ndim, [Section(sum(widths), widths)], truncated_to=truncated_to)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A parameter of several parts, each of which the tp ranks cut.

    Args:  shapes: on every tp rank.
    """

    info: UniversalInfo
    name: str
    shapes: Sequence[Shape]

    def two(self) -> str:
        """The rule of two equal parts along dimension 0."""
        if not self.shapes[0] or any(shape[0] % 2 for shape in self.shapes):
            raise self._unlike("it is two sub-parameters along dimension 0")
        widths = tuple(shape[0] // 2 for shape in self.shapes)
        return cut_body(0, len(self.shapes[0]), [Section(sum(widths), widths)] * 2)

    def body(self, sub: SubParams) -> str:
        """The rule of a view of which one dimension is cut."""
        if not -len(sub.shape) <= sub.dim < len(sub.shape):
            raise self._unlike(f"it is cut along dimension {sub.dim} of {sub.shape}")
        dim = sub.dim % len(sub.shape)
        view = [sum(size) if isinstance(size, tuple) else size for size in sub.shape]
        total = sum(map(prod, self.shapes))
        stated = sub.shape[dim]
        sizes = stated if isinstance(stated, tuple) else self._equal(stated, view, dim, total)
        view[dim] = sum(sizes)
        unstated = [index for index, size in enumerate(view) if size < 0]
        known = prod(size for size in view if size >= 0)
        if len(unstated) > 1 or (unstated and (not known or total % known)):
            raise self._unlike(f"its view {sub.shape} leaves sizes open")
        if unstated:
            view[unstated[0]] = total // known
        widths = self._widths(sub, sizes)
        sections = [Section(size, part) for size, part in zip(sizes, widths, strict=True)]
        before, after = prod(view[:dim]), prod(view[dim + 1 :])
        first = self.shapes[0]
        for at in range(len(first)):
            lead, tail = prod(first[:at]), prod(first[at + 1 :])
            if not lead or not tail or before % lead or after % tail:
                continue
            outer, inner = before // lead, after // tail
            lengths = (outer * sum(part[rank] for part in widths) * inner for rank in self._ranks)
            if list(self.shapes) == [(*first[:at], n, *first[at + 1 :]) for n in lengths]:
                return cut_body(at, len(first), sections, outer=outer, inner=inner)
        raise self._unlike(f"as {view} it is cut into parts of {_listed(sizes)}")

    @property
    def _ranks(self) -> range:
        return range(len(self.shapes))

    def _equal(self, stated: int, view: Sequence[int], dim: int, total: int) -> Shape:
        """Sizes of the parts where one number stands for them.

        It is the number of equal parts (as AutoTP wrote before version 0.4), or the length of the
        dimension, which is then one part; a number that can be both is the length.
        """
        others = [size for index, size in enumerate(view) if index != dim]
        rest, length = prod(others), 0
        if rest and all(size >= 0 for size in others):
            length = total // rest
        elif dim < len(self.shapes[0]):
            length = sum(shape[dim] for shape in self.shapes)
        if stated == length:
            return (length,)
        if stated <= 0 or not length or length % stated:
            raise self._unlike(f"it has {stated} equal sub-parameters")
        return (length // stated,) * stated

    def _widths(self, sub: SubParams, sizes: Shape) -> tuple[Shape, ...]:
        count = len(self.shapes)
        if sub.widths is None:
            if any(size % count for size in sizes):
                raise self._unlike(
                    f"its parts of {_listed(sizes)} do not divide by {count} ranks, "
                    "and their widths are not stated"
                )
            return tuple((size // count,) * count for size in sizes)
        same = tuple(sum(part) for part in sub.widths) == tuple(sizes)
        if not same or any(len(part) != count for part in sub.widths):
            widths = list(sub.widths)
            raise self._unlike(f"its widths {widths} are not of parts {list(sizes)}")
        return sub.widths

    def _unlike(self, why: str) -> ReshardError:
        shapes = ", ".join(str(list(shape)) for shape in self.shapes)
        return layout_error(
            "sub-params-mismatch",
            f"the shards of `{self.name}` do not have the shapes that their description gives them",
            notes=[f"{why}, by `{KEY}` in {self.info.file}", f"shapes on the tp ranks: {shapes}"],
            helps=[_OWN_LAYOUT],
        )


def _listed(sizes: Shape) -> str:
    return ", ".join(map(str, sizes))
