"""The real checkpoints of fixtures/, by what can be asked of them."""

from __future__ import annotations

import json
from pathlib import Path

_FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


FORMATS = {
    path.parent.name: str(json.loads(path.read_text("utf-8")).get("format", "deepspeed"))
    for path in sorted(_FIXTURES.glob("*/case.json"))
}
"""Every case with its format."""

ALL = tuple(FORMATS)

REFUSED = (
    "dcp_fsdp1_local_dp2",
    "dcp_safetensors_dp2",
    "megatron_dist_shifted",
)
"""What the framework itself damaged, or what is not portable: reading it is an error."""

DEEPSPEED_RUNS = tuple(name for name in ALL if FORMATS[name] == "deepspeed-run")
"""Small runs of DeepSpeed with what is rare, which have tests of their own."""

READABLE = tuple(name for name in ALL if name not in (*REFUSED, *DEEPSPEED_RUNS))
DEEPSPEED = tuple(name for name in READABLE if FORMATS[name] == "deepspeed")
MEGATRON = tuple(name for name in READABLE if FORMATS[name] == "megatron")
