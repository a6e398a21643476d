"""The rule of every parameter of a tensor-parallel checkpoint.

Source: DeepSpeed 0.19.8, checkpoint/ds_to_universal.py `merge_tp_slices`, whose order of
precedence this is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from reshard.errors import ReshardError, layout_error, source_error
from reshard.formats.deepspeed.affine_map import (
    FORMAT_VERSION,
    AffineMap,
    affine_body,
    check_affine_map,
    read_affine_map,
)
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.ucl_text import Section, averaged_over_tp, copied_body, cut_body
from reshard.records import dataclass
from reshard.storage.inert import Record

Shape = tuple[int, ...]


def tp_body(info: UniversalInfo, name: str, shapes: Sequence[Shape]) -> str | None:
    """The right side of a parameter's rule; None if its affine map is beyond what a rule says.

    Args:  shapes: on every tp rank.
    Raises: ReshardError[unsupported-parameter | affine-mismatch | sub-params-mismatch | ...].
    """
    reason = info.unsupported(name)
    if reason is not None:
        raise _unsupported(info, name, reason)
    affine = info.affine_map(name)
    if affine is not None:
        check_affine_map(affine, name, shapes, info.file)
        return affine_body(affine)
    ndim = len(shapes[0])
    rows = info.vocabulary_size if info.matches(VOCABULARY, name) else None
    if info.matches(REPLICATED, name):
        return copied_body(ndim, rows if shapes[0][:1] != (rows,) else None)
    if info.matches(AVERAGED, name):
        if rows is not None:
            raise _unsupported(info, name, "it is averaged and has a padded vocabulary")
        return averaged_over_tp()
    parts = info.matches(TWO_PARTS, name)
    sub_params = info.sub_params(name)
    if (parts or sub_params is not None) and rows is not None:
        raise _unsupported(info, name, "it has sub-parameters and a padded vocabulary")
    if parts:
        return _two_parts(info, name, shapes)
    if sub_params is not None:
        return _sub_params(info, name, shapes, sub_params)
    dim = 1 if info.matches(ROW_PARALLEL, name) else 0
    if ndim <= dim:
        why = f"it has {ndim} dimensions and is joined along dimension {dim}"
        raise _unsupported(info, name, why)
    widths = tuple(shape[dim] for shape in shapes)
    truncated_to = rows if dim or rows != sum(widths) else None
    return cut_body(dim, ndim, [Section(sum(widths), widths)], truncated_to=truncated_to)


def is_default(info: UniversalInfo, name: str) -> bool:
    """Whether nothing is said of a parameter, so that it is joined along dimension 0."""
    lists = (REPLICATED, AVERAGED, ROW_PARALLEL, TWO_PARTS, VOCABULARY)
    said = any(info.matches(key, name) for key in lists)
    return not said and info.affine_map(name) is None and info.sub_params(name) is None


def _two_parts(info: UniversalInfo, name: str, shapes: Sequence[Shape]) -> str:
    if not shapes[0] or any(shape[0] % 2 for shape in shapes):
        raise _mismatch(info, name, shapes, "it is two sub-parameters along dimension 0")
    widths = tuple(shape[0] // 2 for shape in shapes)
    part = Section(sum(widths), widths)
    return cut_body(0, len(shapes[0]), [part, part])


def _sub_params(info: UniversalInfo, name: str, shapes: Sequence[Shape], sub: SubParams) -> str:
    if not -len(sub.shape) <= sub.dim < len(sub.shape):
        raise _mismatch(info, name, shapes, f"it is cut along dimension {sub.dim} of {sub.shape}")
    dim = sub.dim % len(sub.shape)
    view = [sum(size) if isinstance(size, tuple) else size for size in sub.shape]
    total = sum(prod(shape) for shape in shapes)
    stated = sub.shape[dim]
    if isinstance(stated, int):
        sizes = _equal_parts(info, name, shapes, stated, view, dim, total)
    else:
        sizes = stated
    view[dim] = sum(sizes)
    open_dims = [index for index, size in enumerate(view) if size < 0]
    known = prod(size for size in view if size >= 0)
    if len(open_dims) > 1 or (open_dims and (not known or total % known)):
        raise _mismatch(info, name, shapes, f"its view {sub.shape} leaves sizes open")
    if open_dims:
        view[open_dims[0]] = total // known
    widths = _widths(info, name, shapes, sub, sizes)
    sections = [Section(size, own) for size, own in zip(sizes, widths, strict=True)]
    before, after = prod(view[:dim]), prod(view[dim + 1 :])
    for at in range(len(shapes[0])):
        lead, tail = prod(shapes[0][:at]), prod(shapes[0][at + 1 :])
        if not lead or not tail or before % lead or after % tail:
            continue
        outer, inner = before // lead, after // tail
        if all(
            (shape[:at], shape[at + 1 :]) == (shapes[0][:at], shapes[0][at + 1 :])
            and shape[at] == outer * sum(own[rank] for own in widths) * inner
            for rank, shape in enumerate(shapes)
        ):
            return cut_body(at, len(shapes[0]), sections, outer=outer, inner=inner)
    raise _mismatch(
        info, name, shapes, f"as {view} it is cut into parts of {', '.join(map(str, sizes))}"
    )


def _equal_parts(
    info: UniversalInfo,
    name: str,
    shapes: Sequence[Shape],
    stated: int,
    view: Sequence[int],
    dim: int,
    total: int,
) -> tuple[int, ...]:
    """Sizes of the parts where one number stands for them.

    It is the number of equal parts (as AutoTP wrote before version 0.4), or the length of the
    dimension, which is then one part; a number that can be both is the length.
    """
    rest = prod(size for index, size in enumerate(view) if index != dim and size >= 0)
    length = 0
    if all(size >= 0 for index, size in enumerate(view) if index != dim) and rest:
        length = total // rest
    elif dim < len(shapes[0]):
        length = sum(shape[dim] for shape in shapes)
    if stated == length:
        return (length,)
    if stated <= 0 or not length or length % stated:
        raise _mismatch(info, name, shapes, f"it has {stated} equal sub-parameters")
    return (length // stated,) * stated


def _widths(
    info: UniversalInfo,
    name: str,
    shapes: Sequence[Shape],
    sub: SubParams,
    sizes: tuple[int, ...],
) -> tuple[tuple[int, ...], ...]:
    count = len(shapes)
    if sub.widths is None:
        if any(size % count for size in sizes):
            raise _mismatch(
                info,
                name,
                shapes,
                f"its parts of {', '.join(map(str, sizes))} do not divide by {count} ranks, "
                "and their widths are not stated",
            )
        return tuple((size // count,) * count for size in sizes)
    if [sum(own) for own in sub.widths] != list(sizes) or any(
        len(own) != count for own in sub.widths
    ):
        raise _mismatch(
            info, name, shapes, f"its widths {list(sub.widths)} are not of parts {list(sizes)}"
        )
    return sub.widths


def _mismatch(info: UniversalInfo, name: str, shapes: Sequence[Shape], why: str) -> ReshardError:
    return layout_error(
        "sub-params-mismatch",
        f"the shards of `{name}` do not have the shapes that their description gives them",
        notes=[
            f"{why}, by `{KEY}` in {info.file}",
            f"shapes on the tp ranks: {', '.join(str(list(shape)) for shape in shapes)}",
        ],
        helps=[_OWN_LAYOUT],
    )


def _unsupported(info: UniversalInfo, name: str, reason: str) -> ReshardError:
    return layout_error(
        "unsupported-parameter",
        f"`{name}` cannot be put together from its shards",
        notes=[f"{reason}", f"by `{KEY}` in {info.file}"],
        helps=[_OWN_LAYOUT],
    )


# What the writer says.

KEY = "universal_checkpoint_info"
REPLICATED = "tp_replicated_parameter_patterns"
AVERAGED = "parameter_to_average_patterns"
ROW_PARALLEL = "parameter_with_row_parallelism_patterns"
TWO_PARTS = "parameter_with_2_sub_params_cat_dim_0"
VOCABULARY = "vocabulary_parameter_patterns"
UNSUPPORTED = "autotp_unsupported_parameter_patterns"
_AFFINE = "affine_map"
_OWN_LAYOUT = "give a layout of your own with `--layout FILE`"


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
        self._sub_params: list[tuple[re.Pattern[str], SubParams]] | None = None

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.node.file

    @property
    def vocabulary_size(self) -> int:
        """Rows of the vocabulary without padding."""
        return self.node.at("original_vocab_size").integer()

    def matches(self, key: str, name: str) -> bool:
        """Whether a name is in one of the lists.

        Raises: ReshardError[ambiguous-pattern | bad-pattern].
        """
        found = self._matching(key, name)
        if len(found) > 1:
            raise self._ambiguous(name, key, [node.text() for node in found])
        return bool(found)

    def unsupported(self, name: str) -> str | None:
        """Why DeepSpeed itself says that a parameter cannot be put together."""
        return next((str(node.value) for node in self._matching(UNSUPPORTED, name)), None)

    def sub_params(self, name: str) -> SubParams | None:
        """The parts of a parameter that is several in one."""
        if self._sub_params is None:
            self._sub_params = list(self._read_sub_params())
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
        found = self._matching(_AFFINE, name)
        if len(found) > 1:
            raise self._ambiguous(name, _AFFINE, [node.path for node in found])
        return read_affine_map(found[0], name) if found else None

    def _matching(self, key: str, name: str) -> list[Node]:
        """What stands behind the patterns that match, in a dict; the patterns, in a list."""
        if key not in self._known:
            node = self.node.find(_AFFINE, "params") if key == _AFFINE else self.node.get(key)
            entries: Iterable[tuple[str, Node]] = ()
            if node is not None and isinstance(node.value, dict):
                entries = node.entries()
            elif node is not None:
                entries = ((item.text(), item) for item in node.items())
            self._known[key] = [(self._compile(text, key), item) for text, item in entries]
        return [item for regex, item in self._known[key] if regex.match(name)]

    def _read_sub_params(self) -> Iterator[tuple[re.Pattern[str], SubParams]]:
        node = self.node.get("parameter_with_sub_params")
        for item in [] if node is None else node.items():
            entry = item
            if isinstance(item.value, Record):  # a SubparamShape
                entry = Node(item.value.attributes, item.file, item.path)
            shape = tuple(
                size.shape() if isinstance(size.value, tuple | list) else size.integer()
                for size in entry.at("shape").items()
            )
            dim = entry.at("partition_dim").integer()
            for pattern in entry.at("patterns").items():
                own = self.node.find("sub_param_shard_widths", pattern.text())
                widths = None if own is None else tuple(part.shape() for part in own.items())
                yield self._compile(pattern.text(), item.path), SubParams(shape, dim, widths)

    def _compile(self, pattern: str, key: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise source_error(
                "bad-pattern",
                f"`{pattern}` in `{key}` of {self.file} is no regular expression",
                notes=[f"{error}"],
            ) from None

    def _ambiguous(self, name: str, key: str, found: Sequence[str]) -> ReshardError:
        return source_error(
            "ambiguous-pattern",
            f"{len(found)} patterns of `{key}` match `{name}`",
            notes=[*(f"`{text}`" for text in found[:4]), f"`{KEY}` in {self.file}"],
            helps=[_OWN_LAYOUT],
        )


def same_rules(first: Node, second: Node) -> bool:
    """Whether two files say the same about tp; other entries may differ from rank to rank."""
    keys = (REPLICATED, AVERAGED, ROW_PARALLEL, TWO_PARTS, VOCABULARY, UNSUPPORTED, _AFFINE)
    more = ("original_vocab_size", "sub_param_shard_widths")
    one, two = first.mapping(), second.mapping()
    return all(one.get(key) == two.get(key) for key in (*keys, *more))
