"""The rule of every parameter of a tensor-parallel checkpoint.

Source: DeepSpeed 0.19.8, checkpoint/ds_to_universal.py `merge_tp_slices`, whose order of
precedence this is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        raise _unsupported(
            info, name, f"it has {ndim} dimensions and is joined along dimension {dim}"
        )
    widths = tuple(shape[dim] for shape in shapes)
    if rows is not None and dim == 0 and rows == sum(widths):
        rows = None
    return cut_body(dim, ndim, [Section(sum(widths), widths)], truncated_to=rows)


def is_default(info: UniversalInfo, name: str) -> bool:
    """Whether nothing is said of a parameter, so that it is joined along dimension 0."""
    return (
        info.affine_map(name) is None
        and info.sub_params(name) is None
        and not any(
            info.matches(key, name)
            for key in (REPLICATED, AVERAGED, ROW_PARALLEL, TWO_PARTS, VOCABULARY)
        )
    )


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
            f"{why}, by `universal_checkpoint_info` in {info.file}",
            f"shapes on the tp ranks: {', '.join(str(list(shape)) for shape in shapes)}",
        ],
        helps=["give a layout of your own with `--layout FILE`"],
    )


def _unsupported(info: UniversalInfo, name: str, reason: str) -> ReshardError:
    return layout_error(
        "unsupported-parameter",
        f"`{name}` cannot be put together from its shards",
        notes=[f"{reason}", f"by `universal_checkpoint_info` in {info.file}"],
        helps=["give a layout of your own with `--layout FILE`"],
    )


KEY = "universal_checkpoint_info"
REPLICATED = "tp_replicated_parameter_patterns"
AVERAGED = "parameter_to_average_patterns"
ROW_PARALLEL = "parameter_with_row_parallelism_patterns"
TWO_PARTS = "parameter_with_2_sub_params_cat_dim_0"
VOCABULARY = "vocabulary_parameter_patterns"
UNSUPPORTED = "autotp_unsupported_parameter_patterns"


@dataclass(frozen=True, slots=True)
class SubParams:
    """One entry of `parameter_with_sub_params`.

    Args:  shape: one size per dimension of a view of the parameter; -1 for one that is left open;
           the sizes of the parts where it is cut.
           widths: by part, elements on every tp rank; None if the writer does not say.
    """

    pattern: str
    shape: tuple[int | tuple[int, ...], ...]
    dim: int
    widths: tuple[tuple[int, ...], ...] | None


class UniversalInfo:
    """The patterns of one file.  They match from the start of a name, not all of it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._lists: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
        self._sub_params: list[tuple[re.Pattern[str], SubParams]] | None = None
        self._affine: list[tuple[re.Pattern[str], Node]] | None = None

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
        patterns = self._lists.get(key)
        if patterns is None:
            node = self.node.get(key)
            texts = [] if node is None else [item.text() for item in node.items()]
            patterns = [(text, self._compile(text, key)) for text in texts]
            self._lists[key] = patterns
        found = [text for text, regex in patterns if regex.match(name)]
        if len(found) > 1:
            raise self._ambiguous(name, key, found)
        return bool(found)

    def unsupported(self, name: str) -> str | None:
        """Why DeepSpeed itself says that a parameter cannot be put together."""
        node = self.node.get(UNSUPPORTED)
        for pattern, reason in [] if node is None else node.entries():
            if self._compile(pattern, UNSUPPORTED).match(name):
                return str(reason.value)
        return None

    def sub_params(self, name: str) -> SubParams | None:
        """The parts of a parameter that is several in one."""
        if self._sub_params is None:
            self._sub_params = list(self._read_sub_params())
        return next((item for regex, item in self._sub_params if regex.match(name)), None)

    def affine_map(self, name: str) -> AffineMap | None:
        """The affine map of a parameter."""
        if self._affine is None:
            self._affine = self._read_affine()
        found = [node for regex, node in self._affine if regex.match(name)]
        if len(found) > 1:
            raise self._ambiguous(name, "affine_map", [node.path for node in found])
        return read_affine_map(found[0], name) if found else None

    def _read_affine(self) -> list[tuple[re.Pattern[str], Node]]:
        node = self.node.get("affine_map")
        if node is None:
            return []
        version = node.get("version")
        if version is not None and version.integer() > FORMAT_VERSION:
            raise source_error(
                "unknown-version",
                f"`affine_map` of {node.file} has version {version.integer()}",
                notes=[f"versions up to {FORMAT_VERSION} are known"],
                helps=["use a newer reshard"],
            )
        return [(self._compile(key, "affine_map"), item) for key, item in _params(node)]

    def _read_sub_params(self) -> Sequence[tuple[re.Pattern[str], SubParams]]:
        node = self.node.get("parameter_with_sub_params")
        widths = self.node.get("sub_param_shard_widths")
        out = []
        for item in [] if node is None else node.items():
            entry = item
            if isinstance(item.value, Record):  # a SubparamShape
                entry = Node(item.value.attributes, item.file, item.path)
            shape = tuple(_size(size) for size in entry.at("shape").items())
            dim = _integer(entry.mapping().get("partition_dim"), entry)
            for pattern in entry.at("patterns").items():
                own = None if widths is None else widths.get(pattern.text())
                out.append(
                    (
                        self._compile(pattern.text(), item.path),
                        SubParams(
                            pattern.text(),
                            shape,
                            dim,
                            None if own is None else tuple(part.shape() for part in own.items()),
                        ),
                    )
                )
        return out

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
            helps=["give a layout of your own with `--layout FILE`"],
        )


def _params(node: Node) -> Sequence[tuple[str, Node]]:
    found = node.get("params")
    return [] if found is None else list(found.entries())


def _size(node: Node) -> int | tuple[int, ...]:
    if isinstance(node.value, tuple | list):
        return node.shape()
    return node.integer()


def _integer(value: object, node: Node) -> int:
    return Node(value, node.file, f"{node.path}.partition_dim").integer()


def same_rules(first: Node, second: Node) -> bool:
    """Whether two files say the same about tp; other entries may differ from rank to rank."""
    return _rules(first) == _rules(second)


def _rules(node: Node) -> Mapping[str, object]:
    keys = (REPLICATED, AVERAGED, ROW_PARALLEL, TWO_PARTS, VOCABULARY, UNSUPPORTED)
    more = ("original_vocab_size", "sub_param_shard_widths", "affine_map")
    return {key: node.mapping().get(key) for key in (*keys, *more)}
