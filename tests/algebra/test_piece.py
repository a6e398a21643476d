"""Pieces and moves, element by element."""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from brute_force import addresses, box_indices
from reshard.algebra.box import Box
from reshard.algebra.piece import Move, Piece, join, moves, row_major


@st.composite
def pieces(draw: st.DrawFn, rank: int) -> Piece:
    """A piece of a dense array with its axes in some order, maybe with room between them."""
    lo = tuple(draw(st.integers(0, 3)) for _ in range(rank))
    size = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    strides = [0] * rank
    step = 1
    for axis in draw(st.permutations(range(rank))):
        strides[axis] = step
        step *= size[axis] + draw(st.sampled_from([0, 0, 0, 1]))
    return Piece(Box(lo, size), draw(st.integers(0, 5)), tuple(strides))


def stored(piece: Piece) -> dict[tuple[int, ...], int]:
    """The address of every element."""
    return {index: piece.at(index) for index in box_indices(piece.box.lo, piece.box.size)}


def copied(move: Move) -> set[tuple[int, int]]:
    """Every (source address, destination address)."""
    src = addresses(move.src_offset, move.shape, move.src_strides).reshape(-1)
    dst = addresses(move.dst_offset, move.shape, move.dst_strides).reshape(-1)
    return set(zip(src.tolist(), dst.tolist(), strict=True))


pairs = st.integers(0, 4).flatmap(lambda rank: st.tuples(pieces(rank), pieces(rank)))


@given(pairs)
def test_a_join_copies_what_both_hold(pair: tuple[Piece, Piece]) -> None:
    src, dst = pair
    have, want = stored(src), stored(dst)
    move = join(src, dst)
    wanted = {(have[index], want[index]) for index in have.keys() & want.keys()}
    assert (copied(move) if move else set()) == wanted
    assert (move.numel if move else 0) == len(wanted)


@given(st.integers(0, 4).flatmap(lambda rank: st.lists(pieces(rank), min_size=2, max_size=4)))
def test_moves_from_several_places_are_alike(several: list[Piece]) -> None:
    dst, *sources = several
    box: Box | None = dst.box
    for source in sources:
        box = box and box.intersect(source.box)
    if box is None:
        return
    found = moves(box, sources, dst)
    assert len({(move.shape, move.dst_offset, move.dst_strides) for move in found}) == 1
    assert 1 not in found[0].shape
    for move, source in zip(found, sources, strict=True):
        assert copied(move) == {
            (source.at(index), dst.at(index)) for index in box_indices(box.lo, box.size)
        }


@given(pairs, st.data())
def test_a_restricted_move_copies_its_box(pair: tuple[Piece, Piece], data: st.DataObject) -> None:
    move = join(*pair)
    if move is None:
        return
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in move.shape)
    box = Box(
        lo, tuple(data.draw(st.integers(1, n - a)) for a, n in zip(lo, move.shape, strict=True))
    )
    src = addresses(move.src_offset, move.shape, move.src_strides)
    dst = addresses(move.dst_offset, move.shape, move.dst_strides)
    part = tuple(slice(a, a + n) for a, n in zip(box.lo, box.size, strict=True))
    wanted = set(zip(src[part].reshape(-1).tolist(), dst[part].reshape(-1).tolist(), strict=True))
    restricted = move.restrict(box)
    assert copied(restricted) == wanted
    assert copied(restricted.reroot(3)) == {(a - 3, b) for a, b in wanted}


def test_axes_that_are_stepped_through_alike_become_one() -> None:
    rows = Piece(Box.whole((4, 5, 6)), 0, row_major((4, 5, 6)))
    assert moves(rows.box, (rows,), rows) == (Move((120,), 0, (1,), 0, (1,)),)
    wider = Piece(Box.whole((4, 5, 6)), 2, (40, 6, 1))
    assert moves(rows.box, (rows,), wider) == (Move((4, 30), 0, (30, 1), 2, (40, 1)),)
    assert moves(Box((1, 2, 3), (1, 1, 1)), (rows,), wider) == (Move((), 45, (), 57, ()),)
    turned = Piece(Box.whole((4, 5, 6)), 0, (1, 4, 20))
    assert moves(rows.box, (rows,), turned)[0].shape == (6, 5, 4)


@given(st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_row_major_strides(shape: tuple[int, ...]) -> None:
    piece = Piece(Box.whole(shape), 7, row_major(shape))
    assert sorted(stored(piece).values()) == list(range(7, 7 + prod(shape)))
    assert piece.span == (7, 7 + prod(shape))
    if prod(shape):
        assert piece.restrict(Box(piece.box.lo, (1,) * len(shape))).shift(1).offset == 8
