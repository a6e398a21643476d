"""How Meta's `params.json` states the width of the MLP, which it does not name.

Source: meta-llama/llama, llama/model.py `FeedForward`, and llama-models, model.py: two
thirds of four times `dim`, times `ffn_dim_multiplier`, rounded up to a multiple of
`multiple_of`, which is 256 where nothing says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

_PLAIN = 256
_MULTIPLES = (_PLAIN, 512, 1024, 2048, 4096, 128, 64, 32, 16, 8, 4, 2, 1)
_ROUNDED = (1024, 4096, _PLAIN)
"""What the releases with a multiplier round to."""


def with_width(params: Mapping[str, object], width: object) -> dict[str, object]:
    """The parameters with what gives the width of the MLP.

    Args:  width: rows of `w1`; the parameters stay as they are where it is not known.
    """
    dim = params.get("dim")
    if not isinstance(dim, int) or not isinstance(width, int):
        return dict(params)
    multiple, multiplier = params.get("multiple_of", _PLAIN), params.get("ffn_dim_multiplier")
    is_said = "multiple_of" in params and isinstance(multiple, int)
    if is_said and (multiplier is None or isinstance(multiplier, int | float)):
        assert isinstance(multiple, int)
        if _width(dim, multiple, multiplier) == width:
            return dict(params)
    found = _found(dim, width)
    rest = {key: value for key, value in params.items() if key != "ffn_dim_multiplier"}
    return {**rest, "multiple_of": found[0]} | (
        {} if found[1] is None else {"ffn_dim_multiplier": found[1]}
    )


def _found(dim: int, width: int) -> tuple[int, float | None]:
    for multiple in _MULTIPLES:
        if _width(dim, multiple, None) == width:
            return multiple, None
    for tenths in range(5, 41):
        for multiple in _ROUNDED:
            if _width(dim, multiple, tenths / 10) == width:
                return multiple, tenths / 10
    return 1, (width + 0.5) / int(2 * 4 * dim / 3)


def _width(dim: int, multiple: int, multiplier: float | None) -> int:
    size = int(2 * 4 * dim / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // max(multiple, 1)) * max(multiple, 1)
