"""The rule of every parameter of a tensor-parallel checkpoint.

Source: DeepSpeed 0.19.8, checkpoint/ds_to_universal.py `merge_tp_slices`, whose order of
precedence this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from reshard.errors import ReshardError, layout_error
from reshard.formats.deepspeed.affine_map import affine_body, check_affine_map
from reshard.formats.deepspeed.rule import Section, averaged_over_tp, copied_body, cut_body
from reshard.formats.deepspeed.universal_info import (
    AVERAGED,
    REPLICATED,
    ROW_PARALLEL,
    TWO_PARTS,
    VOCABULARY,
    SubParams,
    UniversalInfo,
)

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
