"""Whether the first layer of an MLP holds two matrices, gate and up, one behind the other.

Source: megatron/core/transformer/mlp.py `MLP.__init__`, core 0.12 to 0.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments
from reshard.formats.megatron.cuts import is_language

_FIRST = re.compile(r"(.*\.)(linear_fc1|dense_h_to_4h)\.(weight|bias)(\d*)")
_SECOND = {"linear_fc1": "linear_fc2", "dense_h_to_4h": "dense_4h_to_h"}


class Gating:
    """Tells it of every MLP, by the shapes of its two layers.

    The first layer has twice as many rows as the second has columns exactly if it holds both. The
    arguments speak of the language model alone, not of towers beside it.
    Args:  shapes: on one rank, by name.  strict: whether it must be as the arguments say.
    Raises: ReshardError[glu-mismatch | interleaved-glu].
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], args: Arguments, *, strict: bool = True
    ) -> None:
        told = [args.get(name) for name in ("swiglu", "gated_linear_unit")]
        is_told = strict and told != [None, None]
        self._stated = any(told)
        self._known: dict[str, bool] = {}
        for name, shape in shapes.items():
            module = _module(name)
            width = _width(name, shapes)
            if module is None or width is None:
                continue
            rows = shape[-1] if name.endswith("experts.weight1") else shape[0]
            if not is_language(name):
                self._known[module] = rows == 2 * width
                continue
            if is_told and rows != (2 * width if self._stated else width):
                raise source_error(
                    "glu-mismatch",
                    f"`{name}` has {rows} rows for {width} columns of the layer behind it",
                    notes=[
                        f"the run had {'a' if self._stated else 'no'} gated MLP, which has "
                        f"{2 * width if self._stated else width}",
                        f"`swiglu` in the arguments of {args.file}",
                    ],
                    helps=["say how it lies in a layout of your own, and give it with `--layout`"],
                )
            self._known[module] = rows == 2 * width
        block = args.get("moe_mlp_glu_interleave_size")
        if (
            strict
            and block
            and any(".experts." in module for module, gated in self._known.items() if gated)
        ):
            raise source_error(
                "interleaved-glu",
                f"gate and up of the experts lie interleaved in blocks of {block}",
                notes=[f"`moe_mlp_glu_interleave_size` in the arguments of {args.file}"],
                helps=["load it in Megatron, and save it without `--moe-mlp-glu-interleave-size`"],
            )

    def is_gated(self, name: str) -> bool:
        """Whether a parameter is a first layer that holds gate and up."""
        module = _module(name)
        return module is not None and self._known.get(module, self._stated and is_language(name))


def _module(name: str) -> str | None:
    """The MLP that a first layer belongs to."""
    if name.endswith("experts.weight1"):
        return name.removesuffix("weight1")
    match = _FIRST.fullmatch(name)
    return match.group(1) + match.group(4) if match else None


def _width(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Columns of the second layer of a first layer's MLP; None for what is no first layer."""
    if name.endswith("experts.weight1"):
        second = shapes.get(name.removesuffix("1") + "2")
        return second[-2] if second and len(second) == 3 else None
    match = _FIRST.fullmatch(name)
    if match is None or match.group(3) == "bias":
        return None
    head, first, _, number = match.groups()
    second = shapes.get(f"{head}{_SECOND[first]}.weight{number}")
    return second[1] if second and len(second) == 2 else None
