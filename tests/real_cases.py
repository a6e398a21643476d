"""The real checkpoints of fixtures/, by what can be asked of them."""

from __future__ import annotations

import json
from pathlib import Path

_FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def _format(name: str) -> str:
    case = json.loads((_FIXTURES / name / "case.json").read_text(encoding="utf-8"))
    return str(case.get("format", "deepspeed"))


ALL = tuple(sorted(path.parent.name for path in _FIXTURES.glob("*/case.json")))

REFUSED = (
    "dcp_fsdp1_local_dp2",
    "dcp_safetensors_dp2",
    "megatron_dist_shifted",
)
"""What the framework itself damaged, or what is not portable: reading it is an error."""

READABLE = tuple(name for name in ALL if name not in REFUSED)
DEEPSPEED = tuple(name for name in READABLE if _format(name) == "deepspeed")
MEGATRON = tuple(name for name in READABLE if _format(name) == "megatron")
