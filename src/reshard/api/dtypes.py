"""What `--dtype` says: element types by kind of state."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from reshard.dtypes import DType
from reshard.errors import ReshardError, target_error
from reshard.run.states import PARAM

NAMES: Mapping[str, DType] = {
    "fp32": DType.F32,
    "float32": DType.F32,
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "fp16": DType.F16,
    "float16": DType.F16,
    "fp64": DType.F64,
    "float64": DType.F64,
    "fp8_e4m3": DType.F8_E4M3,
    "fp8_e5m2": DType.F8_E5M2,
}
"""What users call the types that weights are rounded to."""


def parse_dtypes(text: str | None) -> dict[str, DType]:
    """`bf16` for the weights, or `param=bf16,exp_avg=fp32`; by state kind.

    Raises: ReshardError[bad-dtype].
    """
    out: dict[str, DType] = {}
    for item in text.split(",") if text else ():
        state, equals, name = item.strip().rpartition("=")
        state = state.strip() if equals else PARAM
        if not state or state in out:
            why = "gives a state twice" if state else "names no state"
            raise _bad(text or "", f"`{item}` {why}")
        dtype = NAMES.get(name.strip().lower())
        if dtype is None:
            raise _unknown(name.strip())
        out[state] = dtype
    return out


def _bad(text: str, why: str) -> ReshardError:
    return target_error(
        "bad-dtype",
        f"`--dtype {text}` cannot be read: {why}",
        helps=["write `bf16` for the weights, or `param=bf16,exp_avg=fp32`"],
    )


def _unknown(name: str) -> ReshardError:
    near = get_close_matches(name.lower(), NAMES, 1)
    return target_error(
        "bad-dtype",
        f"there is no element type `{name}`",
        notes=["it can be `fp64`, `fp32`, `fp16`, `bf16`, `fp8_e4m3`, or `fp8_e5m2`"],
        helps=[f"did you mean `{near[0]}`?"] if near else [],
    )
